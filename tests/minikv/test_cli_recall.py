"""`minikv recall` asks the engine or a server, keeps what it has, and refuses in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from command import Run
from tiny_model import ANSWER_TEXT, write_tiny_model

from minikv.answerer import EngineAnswerer
from tools.recall.answer import Answer
from tools.recall.prompt import EMPTY_THINK
from tools.recall.server import Server

N_CTX = 4096


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", n_ctx=N_CTX)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two functions of 20 short lines; the model's own words are one of them."""
    path = tmp_path / "source.py"
    body = "".join(f"    a{i} = {i}\n" for i in range(19))
    path.write_text(f"def f():\n    '''\n{ANSWER_TEXT}\n    '''\n{body}def g():\n{body}    0\n")
    return path


def data(minikv: Run, *args: object) -> dict[str, Any]:
    result = minikv("recall", *args, "--json", "--backend", "reference")
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_answers_are_shown_scored_and_counted(minikv: Run, model: Path, source: Path) -> None:
    result = minikv("recall", source, "-m", model, "-ctk", "q8_0", "--backend", "reference")
    assert result.status == 0
    assert "=== f (source.py, line 2): FAIL, 1/20 matched, 0 hallucinated, 0 bonus" in result.out
    assert f"+ {ANSWER_TEXT}" in result.out  # no line of g
    last, conclusion = result.out.splitlines()[-2:]
    # heads of 80 channels are padded to 96
    assert last.endswith("KV q8_0/bf16: 10.2/16.0 bits per value") and "sha256" in last
    assert conclusion.startswith("0 of 2 passed (0 %, 95 % interval 0 to 66 %); 1 of 40 lines")
    assert result.err.splitlines()[-2:] == ["minikv: [1/2] f", "minikv: [2/2] g"]


@pytest.mark.parametrize("ctk", ["bf16", "int3nsep"])
def test_the_source_is_read_once_for_all_targets(
    minikv: Run, model: Path, source: Path, ctk: str
) -> None:
    first, second = (
        t["answer"] for t in data(minikv, source, "-m", model, "-ctk", ctk, "-ctv", ctk)["targets"]
    )
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] > len(source.read_text()) - 128
    assert first["text"] == second["text"] == ANSWER_TEXT


def test_a_model_without_template_and_an_empty_think_block_are_prompts_of_their_own(
    minikv: Run, model: Path, source: Path, tmp_path: Path
) -> None:
    base = write_tiny_model(tmp_path / "base.gguf", template=None, n_ctx=N_CTX)
    prompts = [
        data(minikv, source, "-m", path, "-k", 1, *more)["targets"][0]["answer"]["prompt_tokens"]
        for path, more in ((model, []), (base, []), (model, ["--prefill-no-think"]))
    ]
    chat, plain, no_think = prompts
    assert plain < chat
    assert no_think == chat + len(EMPTY_THINK)


def test_interrupted_targets_are_kept_and_a_second_call_goes_on(
    minikv: Run, model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump, asked, answer = tmp_path / "dump.json", [], EngineAnswerer.__call__

    def interrupted(self: EngineAnswerer, message: str) -> Answer:
        asked.append(message)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(self, message)

    monkeypatch.setattr(EngineAnswerer, "__call__", interrupted)
    command = ("recall", source, "-m", model, "--dump", dump, "--backend", "reference")
    result = minikv(*command)
    assert result.status == 130
    assert result.err.splitlines()[-1].endswith(
        "dump.json keeps 1 of 2 targets; run this again to go on"
    )
    assert len(json.loads(dump.read_text())["targets"]) == 1
    assert minikv(*command).status == 0
    assert len(asked) == 3
    before = dump.read_bytes()
    again = minikv(*command)
    assert (again.status, len(asked), dump.read_bytes()) == (0, 3, before)


def test_rescoring_reads_the_dump_and_leaves_it(
    minikv: Run, model: Path, source: Path, tmp_path: Path
) -> None:
    dump = tmp_path / "dump.json"
    data(minikv, source, "-m", model, "--dump", dump)
    before = dump.read_bytes()
    assert "f (source.py, line 2): FAIL, 1/20" in minikv("recall", "rescore", dump).out
    told = json.loads(minikv("recall", "rescore", dump, "--relax-indent", "--json").out)
    assert told["scoring"]["relax_indent"] is True
    assert dump.read_bytes() == before


def test_a_server_is_asked_through_the_same_harness(
    minikv: Run, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = source.read_text().split("\n")[1:]
    monkeypatch.setattr(Server, "__call__", lambda *_: Answer("\n".join(body[:20]), "stop"))
    told = json.loads(
        minikv("recall", source, "--base-url", "http://h", "-m", "peer", "-k", 1, "--json").out
    )
    assert told["run"]["answerer"]["model"] == "peer"
    assert told["summary"]["targets"] == 1


@pytest.mark.parametrize("given", [["--api-key", "s3cret"], ["--api-key=s3cret"]])
def test_a_dump_and_the_output_do_not_tell_the_key(
    minikv: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    keys = []
    monkeypatch.setattr(
        Server, "__call__", lambda server, _: keys.append(server.api_key) or Answer("a", "stop")
    )
    dump = tmp_path / "dump.json"
    result = minikv("recall", source, "--base-url", "http://h", *given, "--dump", dump, "--json")
    assert (result.status, keys) == (0, ["s3cret"] * 2)
    assert "s3cret" not in result.out + result.err + dump.read_text()
    assert "..." in json.loads(dump.read_text())["command"]


def test_a_run_in_which_no_target_was_answered_is_an_error(
    minikv: Run, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "__call__", lambda *_: Answer("", "stop"))
    result = minikv("recall", source, "--base-url", "http://h")
    assert result.status == 1
    assert result.err.splitlines()[-1] == "minikv: no target was answered: empty answer (stop)"
    assert "0 of 0 passed; 0 of 0 lines" in result.out


def test_an_answer_that_fills_the_context_is_an_error_of_its_target(
    minikv: Run, source: Path, tmp_path: Path
) -> None:
    endless = write_tiny_model(tmp_path / "endless.gguf", endless=True, n_ctx=N_CTX)
    needed = data(minikv, source, "-m", endless, "-k", 1, "-n", 1)["targets"][0]["answer"]
    n_ctx = needed["prompt_tokens"] + 5
    result = minikv("recall", source, "-m", endless, "-c", n_ctx, "--backend", "reference")
    assert result.status == 1
    assert f"ERROR: the context of {n_ctx} tokens is full after " in result.out


def one_line(minikv: Run, *args: object) -> str:
    result = minikv("recall", *args)
    assert result.status in (1, 2) and result.out == ""
    (line,) = result.err.splitlines()
    return line


def test_a_corpus_longer_than_the_context_tells_both(
    minikv: Run, model: Path, source: Path
) -> None:
    line = one_line(minikv, source, "-m", model, "-c", 500, "--backend", "reference")
    assert line.startswith("minikv: the corpus with its task has ")
    assert "tokens, the context only 500; take a shorter corpus or raise -c" in line


@pytest.mark.parametrize(
    ("args", "wrong"),
    [
        ([], "Missing argument 'CORPUS...'"),
        (["nowhere.py"], "nowhere.py: no such file or folder"),
        (["random-bodies", "x.py"], "random-bodies is a corpus of its own"),
        (["x.py", "--functions", 3], "--functions is a knob of random-bodies, not of x.py"),
        (["random-bodies", "--confusable", 9], "confusable 9: must be 1 to 8"),
        (["random-bodies", "-k", 0], "'-k'"),
        (["random-bodies", "--base-url", "h"], "--base-url h: not a server"),
        (["random-bodies", "--base-url", "http://h", "-c", 9], "-c: the server of --base-url"),
        (["random-bodies", "--api-key", "s"], "--api-key: there is no server"),
        (["random-bodies", "--base-url", "http://h", "--api-key", " "], "--api-key: must be"),
        (["random-bodies", "--dump", "no/where.json"], "there is no directory no"),
        (["random-bodies", "--dump", os.devnull], "/dev/null: not a dump"),
        (["random-bodies", "-m", "no-model"], "no-model"),
        (["random-bodies", "-ctk", "q9"], "q9"),
        (["rescore"], "Missing argument"),
        (["rescore", "nowhere.json"], "nowhere.json: cannot be read: No such file"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(minikv: Run, args: list[object], wrong: str) -> None:
    assert wrong in one_line(minikv, *args)


def test_help_shows_examples(minikv: Run) -> None:
    assert "minikv recall stdlib:http/server.py" in minikv("recall", "--help").out
