"""What `minikv ruler` does: ask both caches, tell each trial as it comes, and keep the record."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine import InputError
from engine.kv.formats import kv_format
from minikv.answerer import EngineAnswerer
from minikv.run import ModelChoice, note
from minikv.text import one_line
from tools.json_file import check_writable
from tools.ruler import record as records
from tools.ruler.compare import compare
from tools.ruler.record import Record, Trial
from tools.ruler.report import LEGEND, tables
from tools.ruler.run import cache_name, missing, new_record, order, settle
from tools.ruler.tasks import Fitter, chosen


@dataclass(frozen=True)
class Asking:
    """What and how much: what the command line says beside model and caches."""

    tasks: Sequence[str]
    samples: int
    seed: int
    limit: int
    prefill_no_think: bool

    def answerers(self, choice: ModelChoice, base: tuple[str, str]) -> list[EngineAnswerer]:
        """The base and, if it is another one, the cache of `choice`, over one model."""
        model = choice.load()
        reference = replace(choice, ctk=base[0], ctv=base[1], sink=0, policy=None)
        return [
            EngineAnswerer(each, self.limit, self.prefill_no_think, model)
            for each in dict.fromkeys([reference, choice])
        ]


def run(
    choice: ModelChoice, base: tuple[str, str], asking: Asking, path: Path | None, as_json: bool
) -> None:
    """Ask for what the dump `path` lacks, and print the tables; progress goes to stderr."""
    tasks = chosen(asking.tasks)
    for name in base:
        kv_format(name)  # refuses unknown names before a download
    room = (choice.n_ctx or 0) - asking.limit
    if room < 1:
        raise InputError(
            f"-c {choice.n_ctx}: must be more than the {asking.limit} tokens of an answer (-n)"
        )
    if path is not None:
        _check_dump(path)
    answerers = asking.answerers(choice, base)
    first = answerers[0]
    fitter = Fitter(asking.seed, room, first.completes, first.count)
    for task in tasks:
        fitter.check(task)
    record = _record(answerers, asking, choice.n_ctx or 0, path)
    trials = order(tasks, asking.samples)
    todo = missing(record, trials, answerers)
    note(f"{len(todo)} of {len(trials)} trials to ask, each of up to {room} tokens")
    try:
        _ask(record, todo, fitter, answerers, path)
    except BaseException:
        if path is not None:
            done = len(trials) - len(missing(record, trials, answerers))
            note(f"{path} keeps {done} of {len(trials)} trials; run this again to go on")
        raise
    _conclude(record, as_json)


def report(path: Path, as_json: bool) -> None:
    """Print what the dump `path` holds."""
    _conclude(records.load(path), as_json)


def _check_dump(path: Path) -> None:
    """Refuse a file that is no dump, or could not be written, before a model is loaded."""
    if os.path.lexists(path):
        records.load(path)
    else:
        check_writable(path)


def _record(
    answerers: Sequence[EngineAnswerer], asking: Asking, n_ctx: int, path: Path | None
) -> Record:
    """The record to write into, with what `path` already holds of this run."""
    command = shlex.join(["minikv", *sys.argv[1:]])
    record = new_record(answerers, asking.seed, n_ctx, command)
    if path is not None:
        record = records.resume(path, record)
        record.save(path)
    return record


def _ask(
    record: Record,
    todo: Sequence[tuple[str, int]],
    fitter: Fitter,
    answerers: Sequence[EngineAnswerer],
    path: Path | None,
) -> None:
    def keep() -> None:
        if path is not None:
            record.save(path)

    names = [cache_name(answerer.about) for answerer in answerers]
    start = time.monotonic()
    for done, (task, index) in enumerate(todo, 1):
        trial = settle(record, task, index, fitter, answerers, keep)
        left = (time.monotonic() - start) / done * (len(todo) - done)
        results = ", ".join(f"{name} {_result(record, trial, name)}" for name in names)
        note(f"[{done}/{len(todo)}] {task} {index}: {results}; {_duration(left)} left")


def _result(record: Record, trial: Trial, cache: str) -> str:
    scores = trial.scores(cache, record.first_line)
    if scores is None:
        return f"ERROR: {trial.outcomes[cache].error}"
    return "pass" if all(score.passed for score in scores) else "FAIL"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _conclude(record: Record, as_json: bool) -> None:
    compared = {name: [each.as_data() for each in compare(record, name)] for name in record.caches}
    if as_json:
        print(json.dumps(record.as_data() | {"comparisons": compared}))
    else:
        about, run = record.run["answerer"], record.run
        print(one_line(f"{about.get('model')}, sha256 {about.get('model_sha256')}"))
        print(f"prompt and answer in {run['n_ctx']} tokens, seed {run['seed']}")
        print(one_line(record.command))
        print(f"\n{tables(record)}\n\n{LEGEND}")
    if record.fault:
        raise InputError(f"no trial was answered: {record.fault}")
