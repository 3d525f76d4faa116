"""From what the user calls a model to the path of its file or folder."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from engine.errors import InputError
from minikv.sources import hub
from minikv.sources.catalogue import CATALOGUE, Entry
from minikv.sources.progress import SILENT, Progress
from minikv.sources.pull import installed, pull, sha256_of

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(model: str, *, progress: Progress = SILENT) -> Path:
    """The local path of `model`, downloaded first where need be.

    `model` is an alias of the catalogue, `hf:org/repo[:file]`, or the path of a GGUF file (of a
    split one, any part) or of a Hugging Face folder.  An alias wins over a file of that name: write
    `./NAME` for the file.  Raises InputError when it is none of these or cannot be downloaded.
    """
    if model in CATALOGUE:
        return installed(CATALOGUE[model]) or pull(CATALOGUE[model], progress=progress)
    if model.startswith(hub.PREFIX):
        return hub.fetch(model, progress=progress)
    return _local(model)


def list_models() -> list[tuple[Entry, Path | None]]:
    """Every catalogue entry with the path of its file, None if it is not downloaded yet."""
    return [(entry, installed(entry)) for entry in CATALOGUE.values()]


def verify(path: Path, alias: str) -> None:
    """Raise InputError unless the file `path` is the pinned model `alias`, byte for byte."""
    if alias not in CATALOGUE:
        raise InputError(f"{alias!r}: not a model alias; choose from: {', '.join(CATALOGUE)}")
    try:
        seen = sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    expected = CATALOGUE[alias].sha256
    if seen != expected:
        raise InputError(f"{path}: sha256 is {seen}, {alias} has {expected}")


def _local(model: str) -> Path:
    expanded = os.path.expanduser(model)
    try:
        os.stat(expanded)  # not through Path, to which "" is the working folder
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise _unknown(model) from None
    except OSError as error:
        raise InputError(f"{model!r:.200}: {error.strerror}") from error
    path = Path(expanded)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"{model!r}: no config.json in this folder; "
            "a model is a GGUF file or a Hugging Face folder with config.json and *.safetensors"
        )
    return path


def _unknown(model: str) -> InputError:
    close = difflib.get_close_matches(model.lower(), CATALOGUE, n=1)
    if close:
        hint = f" (did you mean {close[0]}?)"
    elif _REPO.fullmatch(model):
        hint = f" (did you mean {hub.PREFIX}{model}?)"
    else:
        hint = ""
    return InputError(
        f"{model!r}: no such file or folder, and not a model alias{hint}; "
        f"aliases: {', '.join(CATALOGUE)}; or {hub.PREFIX}org/repo[:file]"
    )
