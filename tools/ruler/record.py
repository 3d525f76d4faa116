"""The record of a run: one JSON file, whole after every answer, from which a run goes on.

Any number of caches may be in one file, all of them asked the same puzzles.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import InputError
from tools.json_file import read_json, refuse_another_run, write_json
from tools.recall.answer import Answer
from tools.ruler.puzzle import Puzzle, Question
from tools.ruler.scoring import Score, score
from tools.ruler.tasks import TASKS

FORMAT = "minikv ruler 1"


@dataclass(frozen=True)
class Outcome:
    """One cache's answers to the questions of a trial or, in `error`, why there are none."""

    answers: tuple[Answer, ...]
    error: str | None = None


@dataclass
class Trial:
    """A puzzle, of whose source only the hash is kept, and what came of it by the cache's name."""

    task: str
    index: int
    sha256: str
    questions: tuple[Question, ...]
    needles: tuple[str, ...]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @staticmethod
    def of(task: str, index: int, puzzle: Puzzle) -> Trial:
        return Trial(task, index, puzzle.sha256, puzzle.questions, puzzle.needles)

    def scores(self, cache: str, first_line: bool) -> list[Score] | None:
        """One per question; None without an outcome that can be scored."""
        outcome = self.outcomes.get(cache)
        if outcome is None or outcome.error is not None:
            return None
        return [
            score(question, self.needles, answer.text, first_line)
            for question, answer in zip(self.questions, outcome.answers, strict=True)
        ]


@dataclass
class Record:
    """`run` is all that decides the answers but the cache; `command` is how to get the last ones.

    `caches` describes each by its name, `base` is the name of the one to compare with.
    """

    run: dict[str, Any]
    base: str
    command: str
    caches: dict[str, dict[str, Any]] = field(default_factory=dict)
    trials: dict[tuple[str, int], Trial] = field(default_factory=dict)

    @property
    def first_line(self) -> bool:
        """Whether only the first line of an answer counts, because the model completes text."""
        return not self.run["answerer"]["chat_template"]

    def trial(self, task: str, index: int, puzzle: Puzzle) -> Trial:
        """That of `puzzle`.  Raises InputError when the record has another one in its place."""
        fresh = Trial.of(task, index, puzzle)
        known = self.trials.setdefault((task, index), fresh)
        if (known.sha256, known.questions) != (fresh.sha256, fresh.questions):
            raise InputError(
                f"trial {index} of {task}: the record holds another text, of another version of "
                "this program; choose another file"
            )
        return known

    def answered(self, task: str, index: int, cache: str) -> bool:
        """Whether there is an outcome, and no error: those are tried again."""
        known = self.trials.get((task, index))
        outcome = known.outcomes.get(cache) if known else None
        return outcome is not None and outcome.error is None

    @property
    def fault(self) -> str | None:
        """Why there is nothing to compare, if so."""
        if any(trial.scores(self.base, self.first_line) for trial in self.trials.values()):
            return None
        outcomes = (o for trial in self.trials.values() for o in trial.outcomes.values())
        return next((o.error for o in outcomes if o.error), "no trial was asked yet")

    def as_data(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "command": self.command,
            "run": self.run,
            "base": self.base,
            "caches": self.caches,
            "trials": [
                asdict(trial) | {"scores": self._scores(trial)} for trial in self.trials.values()
            ],
        }

    def _scores(self, trial: Trial) -> dict[str, list[dict[str, int]]]:
        found = {cache: trial.scores(cache, self.first_line) for cache in trial.outcomes}
        return {cache: [asdict(s) for s in scores] for cache, scores in found.items() if scores}

    def save(self, path: Path) -> None:
        """Write `path` whole or leave it as it was."""
        write_json(path, self.as_data())


def load(path: Path) -> Record:
    """The record in `path`.  Raises InputError when it cannot be read or is none."""
    return read_json(path, _record, "a record of minikv ruler")


def resume(path: Path, fresh: Record) -> Record:
    """`fresh` with what `path` holds of the same run, if the file exists.

    Raises InputError when it holds another run, or is no record.
    """
    if not os.path.lexists(path):
        return fresh
    earlier = load(path)
    refuse_another_run(
        path, {"base": earlier.base, **earlier.run}, {"base": fresh.base, **fresh.run}
    )
    fresh.caches = earlier.caches | fresh.caches
    fresh.trials = earlier.trials
    return fresh


def _record(data: Any) -> Record:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r:.40}")
    run, caches = _object(data["run"], "seed", "n_ctx", "answerer"), _object(data["caches"])
    if not isinstance(_object(run["answerer"], "chat_template")["chat_template"], bool):
        raise ValueError("nobody answered")
    for about in caches.values():
        _object(about, "ctk", "ctv", "bits_k", "bits_v")
    trials = [_trial(each) for each in data["trials"]]
    if not {_text(data["base"]), *(name for t in trials for name in t.outcomes)} <= caches.keys():
        raise ValueError("a cache that is not described")
    return Record(
        run,
        data["base"],
        _text(data["command"]),
        caches,
        {(trial.task, trial.index): trial for trial in trials},
    )


def _trial(data: Any) -> Trial:
    if data["task"] not in TASKS:
        raise ValueError(f"task {data['task']!r:.40}")
    questions = tuple(
        Question(_text(each["text"]), _text(each["lead"]), tuple(map(_text, each["expected"])))
        for each in data["questions"]
    )
    answered = _object(data["outcomes"])
    outcomes = {cache: _outcome(each, questions) for cache, each in answered.items()}
    needles = tuple(map(_text, data["needles"]))
    return Trial(
        data["task"], int(data["index"]), _text(data["sha256"]), questions, needles, outcomes
    )


def _outcome(data: Any, questions: tuple[Question, ...]) -> Outcome:
    answers = tuple(Answer(**each) for each in data["answers"])
    for answer in answers:
        _text(answer.text)
    if data["error"] is None and len(answers) != len(questions):
        raise ValueError("questions without an answer")
    return Outcome(answers, None if data["error"] is None else _text(data["error"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a text: {value!r:.40}")
    return value


def _object(value: Any, *names: str) -> dict[str, Any]:
    """`value`, which must be an object with these names."""
    if not isinstance(value, dict) or not set(names) <= value.keys():
        raise ValueError(f"not an object with {names}: {value!r:.40}")
    return value
