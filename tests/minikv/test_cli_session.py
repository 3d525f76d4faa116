"""`--session FILE` goes on where the last command left off."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from command import child
from tiny_model import ANSWER_TEXT, ANSWER_TOKENS, write_tiny_model

from engine import InputError, SamplerSpec, Session, load_model
from minikv.chat import Conversation
from minikv.keeping import Keeping, messages_of
from minikv.run import Answering, ModelChoice

CACHED = 21 + ANSWER_TOKENS  # the first prompt and its answer


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "talk.kv"


@pytest.fixture
def tiny(model: Path, kept: Path) -> list[object]:
    return ["run", "--backend", "reference", "-m", model, "--session", kept]


def messages(model: Path, kept: Path) -> list[str]:
    session = Session.restore(load_model(model, backend="reference"), kept)
    return [message["content"] for message in messages_of(session, None)]


def test_the_next_command_is_the_next_turn_and_reads_only_what_is_new(minikv, tiny, kept, model):
    for cached in ("", f" (+{CACHED} cached)", f" (+{CACHED + 23 + ANSWER_TOKENS} cached)"):
        result = minikv(*tiny, "Yo")
        assert (result.status, result.out) == (0, ANSWER_TEXT + "\n")
        assert result.err.startswith(f"prompt {23 if cached else 21} tokens{cached}, ")
    assert messages(model, kept) == ["Yo", ANSWER_TEXT] * 3


def test_it_answers_as_a_chat_that_never_left(minikv, tiny, kept, model):
    for prompt in ("Yo", "So"):
        minikv(*tiny, "-ctk", "q8_0", "-ctv", "q8_0", prompt)
    choice = ModelChoice(str(model), "q8_0", "q8_0", None, None, "reference")
    loaded = choice.load()
    stayed = choice.session(loaded)
    talk = Conversation(loaded, stayed, Answering(SamplerSpec(), None, None, False), "tiny")
    for prompt in ("Yo", "So"):
        talk.answer(prompt)
    again = Session.restore(loaded, kept)
    assert again.tokens == stayed.tokens and again.notes == stayed.notes
    assert (again.extend([5, 6, 7]) == stayed.extend([5, 6, 7])).all()


def test_types_and_context_stay_unless_others_are_asked_for(minikv, tiny):
    given = ("-ctk", "q8_0", "-ctv", "int3nsep", "-c", 100)
    assert minikv(*tiny, *given, "Yo").status == 0
    kv = [
        json.loads(minikv(*tiny, "--json", *more, "Yo").out)["kv"]
        for more in ((), ("-ctk", "bf16"), ("-ctv", "q4_0", "-c", 200))
    ]
    assert [(k["ctk"], k["ctv"], k["n_ctx"]) for k in kv] == [
        ("q8_0", "int3nsep", 100), ("bf16", "int3nsep", 100), ("bf16", "q4_0", 200),
    ]  # fmt: skip


def test_a_whole_text_is_read_from_where_it_is_new(minikv, tiny, kept):
    assert minikv(*tiny, "--raw", "-n", 1, "abcdef").status == 0
    result = minikv(*tiny, "--raw", "-n", 1, "abcdefgh")
    assert result.err.startswith("prompt 2 tokens (+6 cached)")


def test_a_chat_goes_on_and_a_reset_keeps_the_system_message(minikv, tiny, kept, model):
    assert minikv(*tiny, "--system", "Be kind.", "Yo").status == 0
    choice = ModelChoice(str(model), "bf16", "bf16", None, None, "reference")
    answering = Answering(SamplerSpec(), None, None, raw=False)
    with Keeping(kept).session(choice) as (loaded, session):
        Conversation(loaded, session, answering, "tiny").answer("So")
    assert messages(model, kept) == ["Be kind.", "Yo", ANSWER_TEXT, "So", ANSWER_TEXT]
    with Keeping(kept).session(choice) as (loaded, session):
        Conversation(loaded, session, answering, "tiny").reset()
    assert messages(model, kept) == ["Be kind."]


def test_another_system_message_is_refused(minikv, tiny):
    assert minikv(*tiny, "--system", "Be kind.", "Yo").status == 0
    assert minikv(*tiny, "--system", "Be kind.", "Yo").status == 0
    result = minikv(*tiny, "--system", "Be rude.", "Yo")
    assert result.status == 1
    assert "--system: the conversation in the session file began with another one" in result.err


def test_what_cannot_be_kept_is_refused_before_the_model_is_loaded(minikv, tmp_path):
    for path, why in ((tmp_path, "not a file"), (tmp_path / "no" / "s", "no such folder")):
        result = minikv("run", "-m", tmp_path / "no.gguf", "--session", path, "Yo")
        assert result.status == 1
        assert f"{path}: {why}" in result.err


def test_exact_first_tokens_stay_those_they_were(minikv, tiny):
    given = ("--kv-sink", 4, "-ctk", "q4_0", "-ctv", "q4_0", "--json", "Yo")
    kv = [json.loads(minikv(*tiny, *more).out)["kv"] for more in (given, ("--json", "Yo"))]
    assert [(k["ctk"], k["sink"]) for k in kv] == [("q4_0", 4)] * 2
    result = minikv(*tiny, "--kv-sink", 3, "Yo")
    assert result.status == 1
    assert "saved with 4 exact first tokens, behind which its pages begin" in result.err


def test_a_file_of_another_model_or_of_none_is_refused_and_stays(minikv, tiny, kept, tmp_path):
    assert minikv(*tiny, "Yo").status == 0
    before = kept.read_bytes()
    other = write_tiny_model(tmp_path / "other.gguf", endless=True)
    result = minikv("run", "--backend", "reference", "-m", other, "--session", kept, "Yo")
    assert (result.status, result.out) == (1, "")
    assert "saved with another model" in result.err
    assert kept.read_bytes() == before
    kept.write_bytes(before[:-1])
    result = minikv(*tiny, "Yo")
    assert result.status == 1 and "cut off" in result.err
    assert kept.read_bytes() == before[:-1]


def test_a_refused_prompt_leaves_no_file(minikv, tiny, kept):
    assert minikv(*tiny, "Yo" * 300).status == 1
    assert not kept.exists()


def test_notes_that_are_no_conversation_are_refused(model):
    session = Session(load_model(model, backend="reference"))
    for notes in ("Yo", [3], [{"role": "user"}], [{"role": "user", "content": 3}]):
        session.notes["messages"] = notes
        with pytest.raises(InputError, match="not a conversation"):
            messages_of(session, None)


def test_ctrl_c_keeps_what_was_read_and_said(tmp_path, kept):
    endless = write_tiny_model(tmp_path / "endless.gguf", endless=True, n_ctx=100_000)
    process = child("run", "--backend", "reference", "-m", endless, "--session", kept, "Yo")
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    restored = Session.restore(load_model(endless, backend="reference"), kept)
    assert len(restored.tokens) > 21
    prompt, answer = messages_of(restored, None)
    assert prompt["content"] == "Yo" and answer["role"] == "assistant" and answer["content"]
    assert sorted(os.listdir(tmp_path)) == ["endless.gguf", "talk.kv"]
