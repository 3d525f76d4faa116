"""The record of a run: one JSON file, whole after every target, from which a run goes on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import InputError
from tools.recall.function import Function
from tools.recall.outcome import Outcome, Summary
from tools.recall.scoring import PASS

FORMAT = "minikv recall 1"
_MAX_BYTES = 1 << 30


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
        part = path.with_name(path.name + ".part")
        try:
            try:
                with part.open("w", encoding="utf-8") as file:
                    json.dump(self.as_data(), file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def load(path: Path) -> Dump:
    """The dump in `path`.  Raises InputError when it cannot be read or is none."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MAX_BYTES))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r:.40}")
        outcomes = [Outcome.from_data(each) for each in data["targets"]]
        relax_indent = data["scoring"]["relax_indent"] is True
        if not isinstance(data["run"]["answerer"], dict):
            raise ValueError("nobody answered")
        return Dump(data["run"], str(data["command"]), relax_indent, outcomes)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path}: not a dump of minikv recall") from None


def resume(path: Path, fresh: Dump) -> Dump:
    """`fresh` with the outcomes that `path` holds of the same run, if the file exists.

    Raises InputError when it holds another run, or is no dump.
    """
    if not os.path.lexists(path):
        return fresh
    earlier = load(path)
    different = _difference(earlier.run, json.loads(json.dumps(fresh.run)))
    if different:
        raise InputError(f"{path}: holds another run: {different}; choose another file")
    fresh.outcomes = earlier.outcomes
    return fresh


def _difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first value that differs, in one line."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            found = _difference(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if there == here else f"{name} is {there!r:.80} there and {here!r:.80} here"
