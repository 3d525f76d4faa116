"""The harness asks every cache the same, keeps what it has, and goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from solver import characters, solve

from engine import InputError
from tools.recall.answer import Answer, Answerer, NoAnswer
from tools.ruler import record as records
from tools.ruler.compare import ALL, compare
from tools.ruler.record import Record
from tools.ruler.run import missing, new_record, order, settle
from tools.ruler.tasks import TASKS

BASE, CACHE = "bf16/bf16", "q4_0/q4_0"


def right(message: str) -> str:
    return "\n".join(solve(message))


def broken(message: str) -> str:
    return right(message)[::-1]


class Scripted:
    """A cache of type `kind` whose model answers what `script` says."""

    def __init__(self, kind: str, script: Callable[[str], str] = right, **about: Any) -> None:
        self.about = {
            "model": "scripted", "chat_template": True,
            "ctk": kind, "ctv": kind, "bits_k": 16.0, "bits_v": 16.0,
        } | about  # fmt: skip
        self.script = script
        self.asked: list[str] = []

    def __call__(self, message: str) -> Answer:
        self.asked.append(message)
        return Answer(self.script(message), "stop")


def fresh(*answerers: Answerer, seed: int = 42) -> Record:
    return new_record(answerers, seed, 1024, "minikv ruler")


def ask(
    record: Record,
    *answerers: Answerer,
    tasks: tuple[str, ...] = tuple(TASKS),
    samples: int = 6,
    path: Path | None = None,
) -> Record:
    def keep() -> None:
        if path is not None:
            record.save(path)

    for task, index in missing(record, order(tasks, samples), answerers):
        settle(record, task, index, characters(), answerers, keep)
    return record


def test_a_cache_that_keeps_everything_is_like_the_base_and_a_broken_one_is_seen() -> None:
    answerers = [Scripted("bf16"), Scripted("q8_0"), Scripted("q4_0", broken)]
    record = ask(fresh(*answerers), *answerers)
    sound = compare(record, "q8_0/q8_0")
    assert [c.task for c in sound] == [*TASKS, ALL]
    assert all((c.lost, c.gained, c.base) == (0, 0, c.cache) for c in sound)
    assert {c.verdict for c in sound} == {"no difference seen"}
    assert {c.verdict for c in compare(record, CACHE)} == {"worse"}


def test_all_caches_are_asked_the_same() -> None:
    base, cache = Scripted("bf16"), Scripted("q4_0", broken)
    ask(fresh(base, cache), base, cache)
    assert base.asked == cache.asked
    assert len(base.asked) == 6 * (len(TASKS) + 3)  # multiquery has four questions


def test_a_run_cut_short_has_about_as_many_trials_of_each_task() -> None:
    assert order(["a", "b"], 2) == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_a_run_goes_on_from_its_record_and_retries_errors(tmp_path: Path) -> None:
    path, calls = tmp_path / "record.json", []

    def breaks(message: str) -> str:
        calls.append(message)
        if len(calls) == 2:
            raise NoAnswer("busy")
        if len(calls) == 4:
            raise KeyboardInterrupt
        return right(message)

    base, cache = Scripted("bf16"), Scripted("q4_0", breaks)
    with pytest.raises(KeyboardInterrupt):
        ask(fresh(base, cache), base, cache, tasks=("single",), path=path)
    kept = records.load(path)
    assert [list(trial.outcomes) for trial in kept.trials.values()] == [[BASE, CACHE]] * 3 + [
        [BASE]
    ]
    assert kept.trials["single", 1].outcomes[CACHE].error == "busy"
    base, cache = Scripted("bf16"), Scripted("q4_0")
    record = ask(records.resume(path, fresh(base, cache)), base, cache, tasks=("single",))
    assert len(base.asked) == 2  # the last two trials
    assert len(cache.asked) == 4  # and the two that were cut short
    assert [c.cache.passed for c in compare(record, CACHE)] == [6]


def test_more_samples_tasks_and_caches_are_added_to_a_record(tmp_path: Path) -> None:
    path, base, cache = tmp_path / "record.json", Scripted("bf16"), Scripted("q4_0")
    ask(fresh(base), base, tasks=("single",), samples=2, path=path)
    base.asked.clear()
    record = records.resume(path, fresh(base, cache))
    ask(record, base, cache, tasks=("single", "common"), samples=3, path=path)
    assert (len(base.asked), len(cache.asked)) == (4, 6)
    kept = records.load(path)
    assert kept.as_data() == record.as_data()
    assert list(kept.caches) == [BASE, CACHE]
    assert [c.cache.trials for c in compare(kept, CACHE)] == [3, 3]
    # a cache that is in the file stays when another run does not ask it
    assert CACHE in records.resume(path, fresh(base)).caches


def test_no_answer_is_an_error_and_an_empty_one_a_failure() -> None:
    def silent(message: str) -> str:
        raise NoAnswer("the context is full")

    def blank(message: str) -> str:
        return "\n\n"

    base = Scripted("bf16")
    for script, expected in ((silent, (2, 0, 0)), (blank, (0, 2, 2))):
        cache = Scripted("q4_0", script)
        record = ask(fresh(base, cache), base, cache, tasks=("single",), samples=2)
        (c,) = compare(record, CACHE)
        assert (c.errors, c.cache.trials, c.lost) == expected


def test_a_record_of_another_run_is_refused_by_the_value_that_differs(tmp_path: Path) -> None:
    path, base = tmp_path / "record.json", Scripted("bf16")
    ask(fresh(base), base, tasks=("single",), samples=1, path=path)
    before = path.read_bytes()
    for other, told in [
        (fresh(base, seed=7), "seed is 42 there and 7 here"),
        (fresh(Scripted("f16")), "base is 'bf16/bf16' there and 'f16/f16' here"),
        (fresh(Scripted("bf16", model="b")), "answerer.model is 'scripted' there and 'b' here"),
    ]:
        with pytest.raises(InputError, match=f"holds another run: {told}; choose another file"):
            records.resume(path, other)
    assert path.read_bytes() == before


def test_texts_that_are_not_those_of_the_record_are_refused() -> None:
    base = Scripted("bf16")
    record = ask(fresh(base), base, tasks=("single",), samples=1)
    with pytest.raises(InputError, match=r"^trial 0 of single: the record holds another text"):
        settle(record, "single", 0, characters(seed=7), [base], lambda: None)


def damaged() -> list[Any]:
    base = Scripted("bf16")
    record = ask(fresh(base), base, tasks=("single",), samples=1)
    whole = json.loads(json.dumps(record.as_data()))
    trial = whole["trials"][0]
    outcome = trial["outcomes"][BASE]
    question = trial["questions"][0]
    return [
        [],
        {},
        whole | {"format": "minikv recall 1"},
        whole | {"run": {}},
        whole | {"run": {"answerer": {"chat_template": 1}}},
        whole | {"base": "q4_0/q4_0"},
        whole | {"base": []},
        whole | {"caches": [3]},
        whole | {"caches": {BASE: {}}},
        whole | {"run": whole["run"] | {"answerer": {}}},
        whole | {"trials": [3]},
        whole | {"trials": [trial | {"task": "other"}]},
        whole | {"trials": [trial | {"task": []}]},
        whole | {"trials": [trial | {"index": None}]},
        whole | {"trials": [trial | {"needles": [1]}]},
        whole | {"trials": [trial | {"questions": [question | {"expected": 3}]}]},
        whole | {"trials": [trial | {"outcomes": []}]},
        whole | {"trials": [trial | {"outcomes": {BASE: 3}}]},
        whole | {"trials": [trial | {"outcomes": {BASE: outcome | {"answers": []}}}]},
        whole | {"trials": [trial | {"outcomes": {BASE: outcome | {"answers": [{"t": 1}]}}}]},
        whole | {"trials": [trial | {"outcomes": {BASE: outcome | {"error": 3}}}]},
        whole | {"trials": [trial | {"outcomes": {"f32/f32": outcome}}]},
    ]


@pytest.mark.parametrize("data", [*map(json.dumps, damaged()), "", "{", "[" * 100_000, "\xff"])
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, data: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(data.encode("latin-1"))
    with pytest.raises(InputError, match=r"record\.json: not a record of minikv ruler") as told:
        records.load(path)
    assert "\n" not in str(told.value)
