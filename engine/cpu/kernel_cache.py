"""Compiled verbs on disk.

Numba's own cache would do, but to read it Numba sets up all the types and functions it knows, which
takes far longer than LLVM takes to link the code; nothing here imports it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import llvmlite
import numpy as np
from llvmlite import binding

from engine.config import cache_dir
from engine.cpu import host

_UNUSED = 30 * 86400  # seconds after which the kernels of other sources are deleted
_DIGEST_NBYTES = 32
_PLAIN = (bool, int, float, str, np.generic)  # their repr says all of them


class KernelCache:
    """The object code of verbs in a folder, one file each, behind its SHA-256.  Where nothing can
    be written, nothing is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        """What is stored as `name`, None if there is nothing whole."""
        try:
            stored = (self._folder / name).read_bytes()
        except OSError:
            return None
        digest, code = stored[:_DIGEST_NBYTES], stored[_DIGEST_NBYTES:]
        return code if hashlib.sha256(code).digest() == digest else None

    def write(self, name: str, code: bytes) -> None:
        with suppress(OSError):
            file, path = tempfile.mkstemp(dir=self._folder)
            with open(file, "wb") as stream:
                stream.write(hashlib.sha256(code).digest() + code)
            os.replace(path, self._folder / name)


def own_folder() -> Path:
    """The folder of these sources' kernels for this processor; those of others, long unused, go."""
    folders = cache_dir() / "kernels"
    own = folders / _key()
    own.mkdir(parents=True, exist_ok=True)
    own.touch()
    for other in folders.iterdir():
        with suppress(OSError):  # someone else may be deleting it, too
            if time.time() - other.stat().st_mtime > _UNUSED:
                shutil.rmtree(other)
    return own


def name_of(body: Callable[..., None]) -> str:
    """Tells a verb from all others: its function, its file, and what it closes over."""
    cells = [cell.cell_contents for cell in body.__closure__ or ()]
    unknown = [value for value in cells if not _is_plain(value)]
    if unknown:
        raise TypeError(f"{body.__qualname__} closes over {unknown[0]!r}, no plain value")
    code = body.__code__
    digest = hashlib.sha256(repr((cells, body.__defaults__)).encode())
    if Path(code.co_filename).parent != Path(__file__).parent:  # not part of the folder's key
        digest.update(Path(code.co_filename).read_bytes())
    qualname = body.__qualname__.replace(".<locals>", "")  # not every file system has < and >
    return f"{body.__module__}.{qualname}.{digest.hexdigest()[:16]}"


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _key() -> str:
    """Of all kernel sources, what compiles them, and the processor they are compiled for, whose
    tile registers the system may withhold."""
    processor = binding.get_process_triple(), host.CPU, host.FEATURES, host.AMX
    digest = hashlib.sha256(repr((llvmlite.__version__, *processor)).encode())
    for path in (_numba_version(), *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _numba_version() -> Path:
    """The file that says which Numba this is, found without importing it."""
    found = find_spec("numba")
    assert found is not None and found.origin is not None
    return Path(found.origin).with_name("_version.py")
