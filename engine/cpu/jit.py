"""How kernels are compiled, cached on disk and called by address."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types

from engine.config import cache_dir
from engine.cpu.simd import intrinsic, load_i64


def _source_hash() -> str:
    """Of all kernels: Numba notices edits in a function's own file, not in what it calls."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_UNUSED = 30 * 86400  # seconds after which the kernels of other sources are deleted


def _kernel_dir() -> Path:
    """The folder of these sources' compiled kernels; those of others, long unused, go."""
    folders = cache_dir() / "kernels"
    own = folders / _source_hash()
    own.mkdir(parents=True, exist_ok=True)
    own.touch()
    for other in folders.iterdir():
        with suppress(OSError):  # someone else may be deleting it, too
            if time.time() - other.stat().st_mtime > _UNUSED:
                shutil.rmtree(other)
    return own


numba.config.CACHE_DIR = str(_kernel_dir())  # type: ignore[attr-defined]

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "cache": True,
}

kernel: Any = numba.njit(**_OPTIONS)
inlined: Any = numba.njit(**_OPTIONS, forceinline=True)
"""A kernel for inner loops: its constant arguments become constants of the caller's code."""


class Verb:
    """A kernel with int64 arguments that other kernels call by address.

    One attention or matrix kernel then serves every format: the call costs nanoseconds per page or
    row, and N formats need N bodies.  It is compiled when its address is first asked for.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.body = body

    @cached_property
    def _compiled(self) -> Any:
        arguments = ", ".join(["int64"] * self.body.__code__.co_argcount)
        options = {name: value for name, value in _OPTIONS.items() if name != "nogil"}
        return numba.cfunc(f"void({arguments})", **options)(self.body)

    @property
    def address(self) -> int:
        return self._compiled.address


@intrinsic
def call(typing_context, address, arguments):
    """Call the Verb at `address` with a tuple of int64 `arguments`."""

    def emit(context, builder, signature, args):
        word = ir.IntType(64)
        values = [builder.extract_value(args[1], i) for i in range(arguments.count)]
        function = ir.FunctionType(ir.VoidType(), [word] * len(values))
        builder.call(builder.inttoptr(args[0], function.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), emit


@inlined
def field(arguments, i):
    """Word i of an argument block."""
    return load_i64(arguments + 8 * i)
