"""A verdict says no more than the trials do."""

from __future__ import annotations

import pytest

from tools.rates import mcnemar, wilson
from tools.recall.answer import Answer
from tools.ruler.compare import ALL, Comparison, compare
from tools.ruler.puzzle import Question
from tools.ruler.record import Outcome, Record, Trial
from tools.ruler.report import tables

BASE, CACHE = "bf16/bf16", "q4_0/q4_0"
CODE, OTHER, FUSED = "1111-2222-3333", "4444-5555-6666", "1111-5555-6666"
QUESTION = Question("What?", "It is", (CODE,))


def record(*trials: Trial) -> Record:
    about = {"ctk": "q4_0", "ctv": "q4_0", "bits_k": 4.5, "bits_v": 4.5}
    run = {"seed": 42, "n_ctx": 1024, "answerer": {"chat_template": True}}
    found = {(trial.task, trial.index): trial for trial in trials}
    return Record(run, BASE, "minikv ruler", {BASE: about, CACHE: about}, found)


def trial(task: str, index: int, base: Outcome, cache: Outcome) -> Trial:
    outcomes = {BASE: base, CACHE: cache}
    questions = (QUESTION,) * max(len(base.answers), len(cache.answers))
    return Trial(task, index, "", questions, (CODE, OTHER), outcomes)


def said(*texts: str) -> Outcome:
    return Outcome(tuple(Answer(text, "stop") for text in texts))


def outcomes(task: str, *groups: tuple[int, str, str]) -> list[Trial]:
    """So many trials in which the base and the cache answered so."""
    pairs = [(base, cache) for n, base, cache in groups for _ in range(n)]
    return [trial(task, i, said(base), said(cache)) for i, (base, cache) in enumerate(pairs)]


def verdict(*groups: tuple[int, str, str]) -> str:
    (only,) = compare(record(*outcomes("single", *groups)), CACHE)
    return only.verdict


def test_trials_are_counted_and_paired() -> None:
    found = outcomes("single", (9, CODE, CODE), (3, CODE, OTHER), (1, "x", CODE), (2, "x", FUSED))
    (c,) = compare(record(*found), CACHE)
    assert (c.base.passed, c.base.trials, c.cache.passed, c.cache.trials) == (12, 15, 10, 15)
    assert (c.lost, c.gained, c.p) == (3, 1, mcnemar(3, 1))
    assert (c.cache.found, c.cache.expected, c.cache.others, c.cache.fused) == (10, 15, 3, 2)
    assert c.cache.interval == wilson(10, 15)
    assert (c.base.others, c.base.fused) == (0, 0)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(20, CODE, CODE)], "no difference seen"),
        ([(20, CODE, "x")], "worse"),
        ([(14, CODE, CODE), (6, CODE, "x")], "worse"),
        ([(15, CODE, CODE), (5, CODE, "x")], "no difference seen"),
        ([(10, CODE, CODE), (6, "x", CODE)], "better"),
        # five trials lost of five could be chance: p = 1/16
        ([(5, CODE, "x")], "too few trials"),
        ([(6, CODE, "x")], "worse"),
        ([(3, CODE, CODE), (17, "x", "x")], "unmeasurable on this model"),
        ([(6, CODE, "x"), (14, "x", "x")], "worse"),
        ([(2, "x", "x")], "too few trials"),
    ],
    ids=str,
)
def test_a_verdict_follows_from_the_interval_and_the_test(
    groups: list[tuple[int, str, str]], expected: str
) -> None:
    assert verdict(*groups) == expected


def test_a_cache_beside_itself_loses_and_gains_nothing() -> None:
    for c in compare(record(*outcomes("single", (9, CODE, ""), (3, "x", ""))), BASE):
        assert (c.lost, c.gained, c.p, c.base) == (0, 0, 1, c.cache)


def test_the_sum_is_over_tasks_that_can_be_measured() -> None:
    found = [
        *outcomes("single", (8, CODE, CODE), (2, CODE, "x")),
        *outcomes("multikey", (7, CODE, CODE), (3, CODE, "x")),
        *outcomes("common", (20, "x", CODE)),
        *outcomes("frequent", (3, CODE, "x")),
    ]
    *tasks, summed = compare(record(*found), CACHE)
    assert [c.task for c in tasks] == ["single", "multikey", "common", "frequent"]
    assert (summed.task, summed.lost, summed.gained) == (ALL, 5, 0)
    assert summed.base.trials == 20
    assert [c.task for c in compare(record(*found[10:]), CACHE)][-1] != ALL


def test_a_trial_passes_with_all_its_questions_and_counts_once() -> None:
    found = trial("multiquery", 0, said(CODE, CODE), said(CODE, "x"))
    (c,) = compare(record(found), CACHE)
    assert (c.base.trials, c.base.passed, c.cache.passed) == (1, 1, 0)
    assert (c.cache.found, c.cache.expected) == (1, 2)


def test_errors_are_in_no_count_but_their_own() -> None:
    errors = [
        trial("single", 8, Outcome((), "the context is full"), said(CODE)),
        trial("single", 9, said(CODE), Outcome((), "the context is full")),
    ]
    (c,) = compare(record(*outcomes("single", (8, CODE, "x")), *errors), CACHE)
    assert (c.base.trials, c.cache.trials, c.lost, c.errors) == (8, 8, 8, 2)
    (nothing,) = compare(record(*errors), CACHE)
    assert nothing.verdict == "nothing answered"


def test_the_tables_show_the_base_and_then_the_cache_beside_it() -> None:
    found = record(*outcomes("single", (8, CODE, CODE), (7, CODE, FUSED)))
    lines = tables(found).splitlines()
    assert lines[0] == "KV bf16/bf16: 4.5/4.5 bits per value"
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == [
        "single", "15/15", "80 to 100 %", "15/15", "0", "0", "measurable",
    ]  # fmt: skip
    assert lines[6].endswith("beside bf16/bf16 on the same trials")
    assert [cell.strip() for cell in lines[10].split("|")[1:-1]] == [
        "single", "8/15", "30 to 75 %", "15", "7", "0", "0.016", "8/15", "0", "7", "worse",
    ]  # fmt: skip
    assert len({len(line) for line in lines[8:]}) == 1


def test_a_comparison_is_json_of_its_own_numbers() -> None:
    (c,) = compare(record(*outcomes("single", (8, CODE, "x"))), CACHE)
    assert isinstance(c, Comparison)
    data = c.as_data()
    assert (data["lost"], data["mcnemar_p"], data["verdict"]) == (8, mcnemar(8, 0), "worse")
    assert (data["base"]["rate"], data["cache"]["rate"]) == (1.0, 0.0)
    assert data["cache"]["rate_high"] == pytest.approx(wilson(0, 8)[1])
