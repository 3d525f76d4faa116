"""`minikv ruler` asks both caches, keeps what it has, and refuses in one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Run
from tiny_model import ANSWER_TEXT, write_tiny_model

from minikv.answerer import EngineAnswerer
from tools.recall.answer import Answer, NoAnswer

N_CTX = 1500
SMALL = ("-c", 700, "-n", 30, "--samples", 2, "--tasks", "single", "--backend", "reference")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", n_ctx=N_CTX)


def data(minikv: Run, *args: object) -> dict[str, Any]:
    result = minikv("ruler", *args, "--json")
    assert result.status == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that answer right from bf16 and wrong from anything else; returns what was asked."""
    asked: list[str] = []

    def answer(self: EngineAnswerer, message: str) -> Answer:
        asked.append(self.about["ctk"])
        (code,) = re.findall("is ([0-9-]{14})", message)
        return Answer(code if self.about["ctk"] == "bf16" else "no idea", "stop")

    monkeypatch.setattr(EngineAnswerer, "__call__", answer)
    return asked


def interrupt(asked: list[str], after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Callable[..., Answer] = EngineAnswerer.__call__

    def interrupted(self: EngineAnswerer, message: str) -> Answer:
        if len(asked) == after:
            raise KeyboardInterrupt
        return answer(self, message)

    monkeypatch.setattr(EngineAnswerer, "__call__", interrupted)


def test_the_model_is_asked_with_both_caches_and_prompts_fill_the_context(
    minikv: Run, model: Path
) -> None:
    told = data(minikv, "-m", model, *SMALL, "-ctk", "int3nsep", "-ctv", "q8_0")
    assert list(told["caches"]) == ["bf16/bf16", "int3nsep/q8_0"]
    assert [trial["index"] for trial in told["trials"]] == [0, 1]
    for trial in told["trials"]:
        for outcome in trial["outcomes"].values():
            (answer,) = outcome["answers"]
            assert answer["text"] == ANSWER_TEXT
            assert 700 - 30 - 100 < answer["prompt_tokens"] <= 700 - 30
    (compared,) = told["comparisons"]["int3nsep/q8_0"]
    assert (compared["base"]["passed"], compared["verdict"]) == (0, "too few trials")


def test_questions_about_a_text_read_it_once(minikv: Run, model: Path) -> None:
    args = ("-m", model, "-c", N_CTX, "-n", 30, "--samples", 1, "--backend", "reference")
    (trial,) = data(minikv, *args, "--tasks", "multiquery")["trials"]
    first, *others = trial["outcomes"]["bf16/bf16"]["answers"]
    assert (first["cached_tokens"], len(others)) == (0, 3)
    assert all(each["cached_tokens"] > 0.9 * each["prompt_tokens"] for each in others)


def test_progress_and_tables_are_told(minikv: Run, model: Path, answering: list[str]) -> None:
    result = minikv("ruler", "-m", model, *SMALL, "--samples", 8, "-ctk", "q4_0")
    assert result.status == 0
    assert "minikv: [1/8] single 0: bf16/bf16 pass, q4_0/bf16 FAIL; " in result.err
    assert "sha256" in result.out.splitlines()[0]
    *_, row = (line for line in result.out.splitlines() if line.startswith("| single"))
    cells = [cell.strip() for cell in row.split("|")]
    assert (cells[2], cells[4:8], cells[-2]) == ("0/8", ["8", "8", "0", "0.0078"], "worse")


def test_16_bits_alone_are_measured_once(minikv: Run, model: Path, answering: list[str]) -> None:
    told = data(minikv, "-m", model, *SMALL)
    assert len(answering) == 2
    assert list(told["comparisons"]) == ["bf16/bf16"]


def test_interrupted_trials_are_kept_and_a_second_call_goes_on(
    minikv: Run,
    model: Path,
    answering: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dump = tmp_path / "ruler.json"
    command = ("ruler", "-m", model, *SMALL, "-ctk", "q4_0", "--dump", dump)
    with monkeypatch.context() as patch:
        interrupt(answering, 3, patch)
        result = minikv(*command)
    assert result.status == 130
    assert result.err.splitlines()[-1].endswith(
        "ruler.json keeps 1 of 2 trials; run this again to go on"
    )
    assert minikv(*command).status == 0
    assert answering == ["bf16", "q4_0", "bf16", "q4_0"]
    before = dump.read_bytes()
    assert minikv(*command).status == 0
    assert (len(answering), dump.read_bytes()) == (4, before)


def test_a_report_shows_every_cache_of_a_dump_and_leaves_it(
    minikv: Run, model: Path, answering: list[str], tmp_path: Path
) -> None:
    dump = tmp_path / "ruler.json"
    for kind in ("q4_0", "int3nsep"):
        last = data(minikv, "-m", model, *SMALL, "-ctk", kind, "--dump", dump)
    assert answering.count("bf16") == 2
    before = dump.read_bytes()
    out = minikv("ruler", "report", dump).out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("KV ")] == [
        "KV bf16/bf16", "KV q4_0/bf16", "KV int3nsep/bf16",
    ]  # fmt: skip
    assert json.loads(minikv("ruler", "report", dump, "--json").out) == last
    assert dump.read_bytes() == before


def test_a_model_without_template_completes_an_answer(minikv: Run, tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base.gguf", template=None, endless=True, n_ctx=N_CTX)
    told = data(minikv, "-m", base, *SMALL)
    assert told["run"]["answerer"]["chat_template"] is False
    assert told["trials"][0]["outcomes"]["bf16/bf16"]["answers"][0]["finish"] == "length"


@pytest.mark.parametrize(
    ("args", "wrong"),
    [
        (["--tasks", "single,niah"], "--tasks niah: not a task. Choose from: single, multikey,"),
        (["--samples", 0], "'--samples'"),
        (["-n", 0], "'-n'"),
        (["-c", 100], "-c 100: must be more than the 128 tokens of an answer (-n)"),
        (["-c", 9999, "--backend", "reference"], "context of 9999 tokens: the model takes 1 to"),
        (["-c", 400, "--backend", "reference"], "task multikey: its shortest prompt has "),
        (["--dump", "no/where.json"], "there is no directory no"),
        (["--dump", os.devnull], "/dev/null: not a record of minikv ruler"),
        (["-ctk", "q9"], "q9: not a KV cache type"),
        (["--base-ctv", "q9"], "q9: not a KV cache type"),
        (["again"], "again"),
        (["report"], "Missing argument"),
        (["report", "nowhere.json"], "nowhere.json: cannot be read: No such file"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(minikv: Run, model: Path, args: list[object], wrong: str) -> None:
    result = minikv("ruler", *args, *([] if args[0] == "report" else ["-m", model]))
    assert result.status in (1, 2) and result.out == ""
    (line,) = result.err.splitlines()
    assert wrong in line


def test_a_run_in_which_no_trial_was_answered_is_an_error(
    minikv: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> Answer:
        raise NoAnswer("the context is full")

    monkeypatch.setattr(EngineAnswerer, "__call__", silent)
    dump = tmp_path / "ruler.json"
    command = ("ruler", "-m", model, *SMALL, "-ctk", "q4_0", "--dump", dump)
    for result in (minikv(*command), minikv("ruler", "report", dump)):
        assert result.status == 1
        assert result.err.splitlines()[-1] == ("minikv: no trial was answered: the context is full")
        assert "2 trials without an answer are left out" in result.out
        assert "| nothing answered |" in result.out


def test_a_dump_without_trials_is_reported_as_such(
    minikv: Run, model: Path, answering: list[str], tmp_path: Path
) -> None:
    dump = tmp_path / "ruler.json"
    told = data(minikv, "-m", model, *SMALL, "-ctk", "q4_0", "--dump", dump)
    for trials in ([], [told["trials"][0] | {"outcomes": {}}]):
        dump.write_text(json.dumps(told | {"trials": trials}))
        result = minikv("ruler", "report", dump)
        assert (result.status, result.err.splitlines()) == (
            1,
            ["minikv: no trial was answered: no trial was asked yet"],
        )


def test_another_model_is_refused_and_the_dump_stays(
    minikv: Run, model: Path, answering: list[str], tmp_path: Path
) -> None:
    dump = tmp_path / "ruler.json"
    data(minikv, "-m", model, *SMALL, "--dump", dump)
    before = dump.read_bytes()
    other = write_tiny_model(tmp_path / "other.gguf", endless=True, n_ctx=N_CTX)
    result = minikv("ruler", "-m", other, *SMALL, "--dump", dump)
    assert (result.status, dump.read_bytes()) == (1, before)
    assert "ruler.json: holds another run: answerer.model" in result.err


def test_help_shows_examples(minikv: Run) -> None:
    assert "minikv ruler report ruler.json" in minikv("ruler", "--help").out


@pytest.mark.real
def test_what_two_plain_bits_do_is_seen(minikv: Run, real_model: Callable[[str], Path]) -> None:
    small = ("-c", 240, "-n", 48, "--samples", 3, "--tasks", "single")
    told = data(minikv, "-m", real_model("smollm2-135m"), *small, "-ctk", "int2row")
    (compared,) = told["comparisons"]["int2row/bf16"]
    assert (compared["base"]["passed"], compared["cache"]["passed"]) == (3, 0)
