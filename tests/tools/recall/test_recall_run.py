"""The harness keeps what it has, asks for the rest, and tells errors from failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import InputError
from tools.recall import dump as dumps
from tools.recall.answer import Answer, NoAnswer
from tools.recall.corpus import Corpus, load
from tools.recall.dump import Dump
from tools.recall.function import Function
from tools.recall.outcome import Outcome
from tools.recall.prompt import message, task
from tools.recall.random_bodies import RandomBodies
from tools.recall.report import conclusion, diff
from tools.recall.run import identity, settle
from tools.recall.sampling import sample

CORPUS = RandomBodies(functions=6, value_len=3).corpus()


def perfect(target: Function) -> str:
    return "\n".join(target.primary)


ABOUT: dict[str, Any] = {"model": "scripted"}


class Scripted:
    """Answers the function that a message names with what `script` says of it."""

    def __init__(self, script: Callable[[Function], str], corpus: Corpus = CORPUS) -> None:
        self.script, self.corpus, self.about = script, corpus, ABOUT
        self.asked: list[str] = []

    def __call__(self, message: str) -> Answer:
        asked = message.rpartition("\n---\n")[2]
        target = next(f for f in self.corpus.functions if f"`{f.name}`" in asked)
        self.asked.append(target.name)
        return Answer(self.script(target), "stop", tokens=7)


def fresh(**run: Any) -> Dump:
    return Dump(identity(["x"], CORPUS, 6, 42, ABOUT) | run, "minikv recall x")


def all_of(answerer: Scripted, dump: Dump, path: Path | None = None) -> list[Outcome]:
    targets = sample(CORPUS, 6)
    return [settle(CORPUS, target, answerer, dump, path) for target in targets]


def test_a_model_that_repeats_everything_passes_everywhere() -> None:
    dump = fresh()
    all_of(Scripted(perfect), dump)
    summary = dump.summary
    assert (summary.passed, summary.primary_matched, summary.hallucinated) == (6, 120, 0)
    assert conclusion(summary).startswith(
        "6 of 6 passed (100 %, 95 % interval 61 to 100 %); 120 of"
    )


def test_no_answer_and_an_empty_one_are_errors_and_never_failures() -> None:
    names = [f.name for f in sample(CORPUS, 6)]

    def script(target: Function) -> str:
        if target.name == names[0]:
            raise NoAnswer("the context is full")
        return {names[1]: " \n", names[2]: "<think></think>\n"}.get(target.name, "wrong")

    dump = fresh()
    outcomes = all_of(Scripted(script), dump)
    told = [outcome.error for outcome in outcomes]
    assert told == ["the context is full", *["empty answer (stop)"] * 2, None, None, None]
    assert (dump.summary.errors, dump.summary.scored, dump.summary.passed) == (3, 3, 0)
    assert "ERROR: the context is full" in diff(outcomes[0], False).plain


def test_a_run_goes_on_from_its_dump_and_retries_errors(tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    names = [f.name for f in sample(CORPUS, 6)]

    def breaks(target: Function) -> str:
        if target.name == names[1]:
            raise NoAnswer("busy")
        if target.name == names[3]:
            raise KeyboardInterrupt
        return perfect(target)

    with pytest.raises(KeyboardInterrupt):
        all_of(Scripted(breaks), fresh(), path)
    assert [o.function.name for o in dumps.load(path).outcomes] == names[:3]
    again, dump = Scripted(perfect), dumps.resume(path, fresh())
    all_of(again, dump, path)
    assert again.asked == [names[1], *names[3:]]
    kept = dumps.load(path)
    assert [o.function.name for o in kept.outcomes] == names
    assert kept.as_data() == dump.as_data()
    assert kept.summary.passed == 6


def test_a_dump_keeps_all_that_scoring_needs(tmp_path: Path) -> None:
    path, dump = tmp_path / "dump.json", fresh()
    all_of(Scripted(lambda target: "\n".join(line.strip() for line in target.primary)), dump, path)
    kept = dumps.load(path)
    assert kept.summary == dump.summary
    assert (kept.summary.passed, kept.summary.hallucinated) == (0, 120)
    kept.relax_indent = True
    assert (kept.summary.passed, kept.summary.hallucinated) == (6, 0)
    data = json.loads(path.read_text())
    assert data["scoring"] == {"relax_indent": False, "pass_lines": 8}
    assert data["run"]["corpus"]["sha256"] == CORPUS.sha256
    first = data["targets"][0]
    assert first["task"] == task(CORPUS, sample(CORPUS, 6)[0])
    assert first["answer"]["tokens"] == 7
    assert first["score"] == {
        "primary_matched": 0,
        "matched_blank": 0,
        "bonus_matched": 0,
        "hallucinated": 20,
        "passed": False,
    }


def test_a_dump_of_another_run_is_refused_by_the_value_that_differs(tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    fresh().save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"holds another run: sampling\.k is 6 there and 7 here"):
        dumps.resume(path, fresh(sampling={"k": 7, "seed": 42}))
    with pytest.raises(InputError, match=r"answerer\.model is 'scripted' there and 'b' here"):
        dumps.resume(path, fresh(answerer={"model": "b"}))
    assert path.read_bytes() == before


def damaged() -> list[Any]:
    dump = fresh()
    all_of(Scripted(perfect), dump)
    whole = json.loads(json.dumps(dump.as_data()))
    target = whole["targets"][0]
    return [
        [],
        3,
        {},
        whole | {"format": "other"},
        whole | {"run": {}},
        whole | {"targets": 3},
        whole | {"targets": [3]},
        whole | {"targets": [target | {"body": ["a"]}]},
        whole | {"targets": [target | {"body": [1] * 20}]},
        whole | {"targets": [target | {"answer": {"text": 1, "finish": "stop"}}]},
        whole | {"targets": [target | {"answer": {"txt": ""}}]},
        whole | {"targets": [target | {"answer": None}]},
        whole | {"targets": [target | {"error": 3}]},
        whole | {"targets": [target | {"start_line": None}]},
    ]


@pytest.mark.parametrize("data", [*map(json.dumps, damaged()), "", "{", "[" * 100_000, "\xff"])
def test_what_is_no_dump_is_refused_in_one_line(tmp_path: Path, data: str) -> None:
    path = tmp_path / "dump.json"
    path.write_bytes(data.encode("latin-1"))
    with pytest.raises(InputError, match="not a dump of minikv recall") as told:
        dumps.load(path)
    assert "\n" not in str(told.value)


def test_a_dump_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dump.json"
    fresh().save(path)
    before = path.read_bytes()

    def full(file: Any, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tools.recall.dump.os.fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        fresh(more=1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_source_comes_first_and_only_the_task_differs_between_targets() -> None:
    messages = [message(CORPUS, f) for f in CORPUS.functions]
    shared = CORPUS.text + "\n\n---\n\n"
    for text, function in zip(messages, CORPUS.functions, strict=True):
        assert text == shared + task(CORPUS, function)
        assert f"def {function.name}():" in task(CORPUS, function)


def test_the_task_names_the_file_only_where_there_are_several(tmp_path: Path) -> None:
    body = "".join(f"  x{i};\n" for i in range(20))
    for name in ("a", "b"):
        (tmp_path / f"{name}.js").write_text(f"function {name}() {{\n{body}}}\n")
    several, alone = load([str(tmp_path)]), load([str(tmp_path / "b.js")])
    assert "`b` in the file `b.js`" in task(several, several.functions[1])
    assert "in the file" not in task(alone, alone.functions[0])
    assert "opening brace" in task(alone, alone.functions[0])


def test_what_a_model_writes_cannot_drive_the_terminal() -> None:
    (outcome, *_) = all_of(Scripted(lambda _: "\x1b[2J\x07 evil\tline"), fresh())
    assert "+ \ufffd[2J\ufffd evil\tline" in diff(outcome, False).plain


def test_the_diff_marks_missing_false_and_further_lines() -> None:
    (outcome, *_) = all_of(
        Scripted(lambda f: "\n".join([*f.body[:19], "false", *f.body[20:22]])), fresh()
    )
    marks = [line[0] for line in diff(outcome, False).plain.split("\n")[1:]]
    assert "".join(marks) == " " * 19 + "-+" + "**"
