"""Records of a run as JSON files: written whole or not at all, and read with suspicion."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import InputError

T = TypeVar("T")
_MAX_BYTES = 1 << 30


def check_writable(path: Path) -> None:
    """Raise InputError when a new file `path` would have no folder to be in."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent}")


def write_json(path: Path, data: Any) -> None:
    """Write `path` whole or leave it as it was.  Raises InputError when it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(data, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def read_json(path: Path, parse: Callable[[Any], T], kind: str) -> T:
    """What `parse` makes of the JSON in `path`; ValueError, KeyError and TypeError are its
    refusals.

    Raises InputError when the file cannot be read, or is not a `kind`.
    """
    try:
        with path.open("rb") as file:
            return parse(json.loads(file.read(_MAX_BYTES)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path}: not {kind}") from None


def refuse_another_run(path: Path, there: Any, here: Any) -> None:
    """Raise InputError, naming a value, when the run that `path` holds is not the one `here`."""
    different = _difference(there, json.loads(json.dumps(here)))
    if different:
        raise InputError(f"{path}: holds another run: {different}; choose another file")


def _difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first value that differs, in one line."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            found = _difference(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if there == here else f"{name} is {there!r:.80} there and {here!r:.80} here"
