"""`minikv run` streams the model's words, and says what they cost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, child
from tiny_model import ANSWER_TEXT, ANSWER_TOKENS, END, TEXTS, write_tiny_model

from engine import Sampler, SamplerSpec, Session, load_model
from engine.config import available_cores
from minikv.generate import Generation


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.gguf, endless.gguf and base.gguf, which has no chat template."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "tiny.gguf")
    write_tiny_model(folder / "endless.gguf", endless=True)
    write_tiny_model(folder / "base.gguf", template=None)
    return folder


def tiny(files: Path, name: str = "tiny") -> list[object]:
    return ["run", "--backend", "reference", "-m", files / f"{name}.gguf"]


def test_the_answer_is_stdout_and_the_cost_is_stderr(minikv, files):
    result = minikv(*tiny(files), "Yo")
    assert (result.status, result.out) == (0, ANSWER_TEXT + "\n")
    (line,) = result.err.splitlines()
    assert line.startswith("prompt 21 tokens, ")
    assert f" | decode {ANSWER_TOKENS} tokens, " in line
    assert line.endswith(" | KV bf16/bf16, 160.0 KiB, 1.00x of f16")


def test_the_numba_backend_answers_alike(minikv, files):
    result = minikv("run", "-m", files / "tiny.gguf", "-t", 1, "Yo")
    assert (result.status, result.out) == (0, ANSWER_TEXT + "\n")


@pytest.mark.parametrize("flag", ["-ct{}", "--ct{}", "--cache-type-{}"])
@pytest.mark.parametrize("joined", [False, True])
def test_every_spelling_of_the_cache_types_is_understood(minikv, files, flag, joined):
    pairs = [(flag.format("k"), "q8_0"), (flag.format("v"), "q4_0")]
    args = (
        ["=".join(pair) for pair in pairs] if joined else [word for pair in pairs for word in pair]
    )
    result = minikv(*tiny(files), *args, "Yo")
    assert (result.status, result.out) == (0, ANSWER_TEXT + "\n")
    assert "KV q8_0/q4_0, " in result.err


def test_keys_and_values_are_stored_each_in_their_own_type(minikv, files):
    result = minikv(*tiny(files), "-ctk", "q8_0", "-ctv", "int3nsep:32", "--kv-sink", 3, "Yo")
    assert result.out == ANSWER_TEXT + "\n"
    assert "KV q8_0/int3nsep:32+sink3, " in result.err


def test_json_is_one_object_with_all_there_is_to_know(minikv, files):
    result = minikv(*tiny(files), "--json", "-ctv", "q4_0", "Yo")
    assert (result.status, result.err) == (0, "")
    told = json.loads(result.out)
    assert told["text"] == ANSWER_TEXT
    assert told["finish"] == "stop"
    assert len(told["tokens"]) == ANSWER_TOKENS == told["timings"]["decode_tokens"]
    assert told["timings"]["prompt_tokens"] == 21
    assert told["timings"]["decode_tokens_per_second"] > 0
    kv = told["kv"]
    assert (kv["ctk"], kv["ctv"], kv["sink"], kv["n_ctx"]) == ("bf16", "q4_0", 0, 256)
    assert 0 < kv["bytes"] < kv["f16_bytes"]


def test_the_limit_ends_an_answer(minikv, files):
    result = minikv(*tiny(files, "endless"), "--json", "-n", 25, "Yo")
    told = json.loads(result.out)
    assert (told["finish"], len(told["tokens"])) == ("length", 25)


def test_a_full_context_ends_an_answer_and_says_so(minikv, files):
    result = minikv(*tiny(files, "endless"), "-c", 40, "Yo")
    assert result.status == 0
    assert "minikv: the context of 40 tokens is full: the answer ends here\n" in result.err
    told = json.loads(minikv(*tiny(files, "endless"), "-c", 40, "--json", "Yo").out)
    # the last token needs no room: nothing is computed from it
    assert (told["finish"], len(told["tokens"])) == ("context", 40 - 21 + 1)


def test_a_broken_character_at_the_end_is_shown_as_such(minikv, files):
    result = minikv(*tiny(files), "-n", 2, "Yo")
    assert result.out == "Hi\ufffd\n"


@pytest.mark.parametrize("args", [[], ["-"]])
def test_piped_text_is_the_prompt_less_its_last_line_end(minikv, files, args):
    expected = json.loads(minikv(*tiny(files), "--json", "Yo\n").out)["timings"]["prompt_tokens"]
    result = minikv(*tiny(files), "--json", *args, stdin=b"Yo\n\n")
    assert json.loads(result.out)["timings"]["prompt_tokens"] == expected


def test_stdin_is_left_alone_when_there_is_a_prompt(files):
    # a loop in a shell feeds its own list through stdin; and a pipe may never be closed
    process = child(*tiny(files), "Yo", stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read().decode() == ANSWER_TEXT + "\n"
    assert process.wait(60) == 0
    process.communicate()


@pytest.mark.parametrize(("args", "stdin"), [([], b"\xff\xfe Yo"), (["\udcff\udcfe Yo"], b"")])
def test_a_prompt_that_is_not_utf8_is_text_with_replacements_and_told(minikv, files, args, stdin):
    result = minikv(*tiny(files), *args, stdin=stdin)
    assert result.out == ANSWER_TEXT + "\n"
    assert result.err.startswith(
        "minikv: the prompt is not UTF-8: bytes that are not count as U+FFFD\n"
    )


def test_raw_prompts_are_not_put_into_the_template(minikv, files):
    told = json.loads(minikv(*tiny(files), "--raw", "--json", "Yo").out)
    assert told["timings"]["prompt_tokens"] == 2
    assert told["text"] == ANSWER_TEXT


def test_the_system_message_is_in_the_prompt(minikv, files):
    plain, more = (
        json.loads(minikv(*tiny(files), "--json", *args, "Yo").out)["timings"]["prompt_tokens"]
        for args in ([], ["--system", "Be kind."])
    )
    assert more > plain + len("Be kind.")


def test_a_base_model_completes_text_and_says_so_once(minikv, files):
    result = minikv(*tiny(files, "base"), "Yo")
    assert result.out == ANSWER_TEXT + "\n"
    assert result.err.count("has no chat template: it completes the text of the prompt") == 1
    assert "prompt 2 tokens" in result.err


def test_a_seed_fixes_the_answer_and_the_default_is_to_sample(minikv, files):
    flat = ["--temp", 50, "--top-k", 0, "--top-p", 1, "--min-p", 0, "-n", 20, "--json", "Yo"]
    one, two, other = (
        json.loads(minikv(*tiny(files, "endless"), "--seed", seed, *flat).out)["tokens"]
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_a_reader_who_leaves_is_no_error(files):
    process = child(*tiny(files, "endless"), "Yo")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) in (1, 141)
    assert process.stderr.read() == b""
    process.stderr.close()


def test_ctrl_c_ends_the_command_with_130_and_no_traceback(tmp_path):
    model = write_tiny_model(tmp_path / "long.gguf", endless=True, n_ctx=100_000)
    process = child(*tiny(tmp_path, "long"), "Yo")
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert model.exists()
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["run", "--help"], ["info", "--help"]])
def test_help_does_not_wait_for_the_compiler(args):
    code = (
        "import sys; from minikv.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit('numba' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith((b"minikv ", b"Usage: "))


@pytest.mark.parametrize("command", ["run", "info", "pull", "ppl"])
def test_help_of_every_command_has_examples(minikv, command):
    result = minikv(command, "--help")
    assert result.status == 0
    assert f"  minikv {command}" in result.out.partition("Examples:")[2]


def test_no_command_at_all_shows_the_help(minikv):
    result = minikv()
    assert (result.status, result.err) == (0, "")
    assert result.out == minikv("--help").out


def test_a_generation_reads_only_what_the_session_lacks(files):
    model = load_model(files / "tiny.gguf", backend="reference")
    session = Session(model)
    prompt = model.tokenizer.encode("one two three")
    counts = []
    for ids in (prompt, [*prompt, *model.tokenizer.encode(" four")], prompt):
        generation = Generation(session, model.tokenizer, ids, Sampler(SamplerSpec(temp=0)))
        assert "".join(generation) == generation.text == ANSWER_TEXT
        counts.append((generation.cached_tokens, generation.prompt_tokens))
    assert counts == [(0, 13), (13, 5), (12, 1)]


def test_a_stopped_generation_leaves_a_session_that_goes_on(files):
    model = load_model(files / "endless.gguf", backend="reference")
    session = Session(model)
    prompt = model.tokenizer.encode("one two three")
    generation = Generation(session, model.tokenizer, prompt, Sampler(SamplerSpec(temp=0)))
    for piece in generation:
        if piece == "k":
            generation.stop()
    assert (generation.finish, generation.text) == ("interrupted", "Hi\u00e9 ok")
    stopped = Generation(session, model.tokenizer, prompt, Sampler(SamplerSpec(temp=0)))
    stopped.stop()
    assert "".join(stopped) == ""
    again = Generation(session, model.tokenizer, prompt, Sampler(SamplerSpec(temp=0)), limit=10)
    assert "".join(again) == ANSWER_TEXT


def test_the_end_token_is_neither_text_nor_counted(files):
    model = load_model(files / "tiny.gguf", backend="reference")
    generation = Generation(
        Session(model), model.tokenizer, [1, 2], Sampler(SamplerSpec(temp=0)), limit=11
    )
    assert "".join(generation) == ANSWER_TEXT
    assert END not in generation.tokens
    assert TEXTS[END] not in generation.text
    assert generation.finish == "stop"


@pytest.mark.real
def test_the_default_model_knows_paris_with_one_thread_and_with_two(minikv, real_model):
    real_model("smollm2-135m")
    answers = []
    for threads in (1, min(2, available_cores())):
        args = ["--raw", "--temp", 0, "-n", 12, "-t", threads, "--json"]
        result = minikv("run", *args, "The capital of France is")
        answers.append(json.loads(result.out)["tokens"])
        assert json.loads(result.out)["text"].startswith(" Paris")
    assert answers[0] == answers[1]
