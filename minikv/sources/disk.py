"""Disk space and disk errors, as one line each."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal

from engine.errors import InputError


def require_space(what: str, folder: Path, needed: int) -> None:
    """Raise InputError unless `folder`, which need not exist yet, has `needed` bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _no_space(what, folder, f"{decimal(needed)} needed, {decimal(free)} free")


@contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn an OSError of the body, which works in `folder`, into an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(what, folder, str(error.strerror)) from error
        raise InputError(f"{what}: {error.filename or folder}: {error.strerror}") from error


def _no_space(what: str, folder: Path, detail: str) -> InputError:
    return InputError(
        f"{what}: not enough disk space in {folder}: {detail}; make room and run the command again"
    )
