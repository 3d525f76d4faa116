"""The record of a run: one JSON file, whole after every target, from which a run goes on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.json_file import read_json, refuse_another_run, write_json
from tools.recall.function import Function
from tools.recall.outcome import Outcome, Summary
from tools.recall.scoring import PASS

FORMAT = "minikv recall 1"


@dataclass
class Dump:
    """`run` is all that decides the answers; `command` is how to get them again."""

    run: dict[str, Any]
    command: str
    relax_indent: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def summary(self) -> Summary:
        return Summary.of(outcome.score(self.relax_indent) for outcome in self.outcomes)

    def as_data(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "command": self.command,
            "run": self.run,
            "scoring": {"relax_indent": self.relax_indent, "pass_lines": PASS},
            "summary": self.summary.as_data(),
            "targets": [outcome.as_data(self.relax_indent) for outcome in self.outcomes],
        }

    def answered(self, function: Function) -> Outcome | None:
        """What is known of `function`, unless it ended in an error: that is tried again."""
        known = (o for o in self.outcomes if o.function.name == function.name and not o.error)
        return next(known, None)

    def add(self, outcome: Outcome) -> None:
        """Take in `outcome` in the place of an earlier one of the same function."""
        name = outcome.function.name
        self.outcomes = [o for o in self.outcomes if o.function.name != name] + [outcome]

    def save(self, path: Path) -> None:
        """Write `path` whole or leave it as it was."""
        write_json(path, self.as_data())


def load(path: Path) -> Dump:
    """The dump in `path`.  Raises InputError when it cannot be read or is none."""
    return read_json(path, _dump, "a dump of minikv recall")


def _dump(data: Any) -> Dump:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r:.40}")
    outcomes = [Outcome.from_data(each) for each in data["targets"]]
    if not isinstance(data["run"]["answerer"], dict):
        raise ValueError("nobody answered")
    relax_indent = data["scoring"]["relax_indent"] is True
    return Dump(data["run"], str(data["command"]), relax_indent, outcomes)


def resume(path: Path, fresh: Dump) -> Dump:
    """`fresh` with the outcomes that `path` holds of the same run, if the file exists.

    Raises InputError when it holds another run, or is no dump.
    """
    if not os.path.lexists(path):
        return fresh
    earlier = load(path)
    refuse_another_run(path, earlier.run, fresh.run)
    fresh.outcomes = earlier.outcomes
    return fresh
