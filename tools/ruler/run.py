"""The harness: ask one cache after another the same questions and keep what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools.recall.answer import Answerer, NoAnswer
from tools.results import is_policy
from tools.ruler.puzzle import Puzzle
from tools.ruler.record import Outcome, Record, Trial
from tools.ruler.tasks import Fitter

_OF_A_CACHE = ("ctk", "ctv", "sink", "recent", "bits_k", "bits_v")


def cache_name(about: Mapping[str, Any]) -> str:
    """What an answerer's cache is called; a policy is its file with a digest, FILE@DIGEST."""
    if is_policy((about["ctk"], about["ctv"])):
        return about["ctk"]
    sink = f"+sink{about['sink']}" if about.get("sink") else ""
    return f"{about['ctk']}/{about['ctv']}{sink}"


def new_record(answerers: Sequence[Answerer], seed: int, n_ctx: int, command: str) -> Record:
    """An empty record of a run whose first answerer has the cache to compare with.

    Answerers differ in their caches only.  `n_ctx` is of a prompt with its answer.
    """
    abouts = [answerer.about for answerer in answerers]
    shared = {name: value for name, value in abouts[0].items() if name not in _OF_A_CACHE}
    caches = {cache_name(a): {name: a[name] for name in _OF_A_CACHE if name in a} for a in abouts}
    run = {"seed": seed, "n_ctx": n_ctx, "answerer": shared}
    return Record(run, cache_name(abouts[0]), command, caches)


def order(tasks: Sequence[str], samples: int) -> list[tuple[str, int]]:
    """Trials so that a run cut short has about as many of each task."""
    return [(task, index) for index in range(samples) for task in tasks]


def missing(
    record: Record, trials: Sequence[tuple[str, int]], answerers: Sequence[Answerer]
) -> list[tuple[str, int]]:
    """The trials that some cache has not answered yet."""
    names = [cache_name(answerer.about) for answerer in answerers]
    return [
        (task, index)
        for task, index in trials
        if not all(record.answered(task, index, name) for name in names)
    ]


def settle(
    record: Record,
    task: str,
    index: int,
    fitter: Fitter,
    answerers: Sequence[Answerer],
    keep: Callable[[], None],
) -> Trial:
    """Put into `record` what it lacks of a trial; `keep` is called after each cache."""
    puzzle = fitter.puzzle(task, index)
    trial = record.trial(task, index, puzzle)
    for answerer in answerers:
        name = cache_name(answerer.about)
        if not record.answered(task, index, name):
            trial.outcomes[name] = _ask(puzzle, answerer, record.first_line)
            keep()
    return trial


def _ask(puzzle: Puzzle, answerer: Answerer, completes: bool) -> Outcome:
    """An empty answer is one like any other: a cache that was destroyed writes blank lines."""
    try:
        messages = [puzzle.message(question, completes) for question in puzzle.questions]
        return Outcome(tuple(map(answerer, messages)))
    except NoAnswer as error:
        return Outcome((), str(error))
