"""Numba, imported when there is something to compile.

Importing it takes longer than all else of a start whose kernels are in the cache.  So what kernels
are made of, `Kernel` and `Intrinsic` here and the vectors of `simd`, are plain Python objects, and
become Numba's own when it meets one in what it compiles and asks for its `_numba_type_`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, update_wrapper, wraps
from importlib import import_module
from threading import Lock
from typing import Any

from engine.cpu import host
from engine.errors import InputError

OPTIONS: dict[str, Any] = {
    "boundscheck": False,
    "error_model": "numpy",
}

_SETUP = Lock()


def compiler() -> Any:
    """The module `numba`, set up for the processor that `host` describes and for our vectors.

    Raises InputError where it was set up for another one before.
    """
    with _SETUP:
        config: Any = import_module("numba.core.config")
        config.CPU_NAME, config.CPU_FEATURES = host.CPU, host.FEATURES
        target = import_module("numba.core.registry").cpu_target.target_context
        seen = target.codegen().magic_tuple()[1:]
        if seen != (host.CPU, host.FEATURES):
            raise InputError(f"Numba compiles for {seen[0]} already, with other features than ours")
        import_module("engine.cpu.vector_type")
    return import_module("numba")


class _Module:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


types: Any = _Module("numba.core.types")
cgutils: Any = _Module("numba.core.cgutils")


class Kernel:
    """A function for kernels to call; called from Python, it is compiled for its arguments."""

    def __init__(self, body: Callable[..., Any], **options: Any) -> None:
        update_wrapper(self, body)
        self._body, self._options = body, options

    @cached_property
    def _for_kernels(self) -> Any:
        # what Python would call takes a fifth of the time to compile
        return self._jitted(no_cpython_wrapper=True, no_cfunc_wrapper=True)

    @cached_property
    def _for_python(self) -> Any:
        return self._jitted()

    def _jitted(self, **options: Any) -> Any:
        return import_module("numba").njit(**OPTIONS, **self._options, **options)(self._body)

    @property
    def _numba_type_(self) -> Any:
        return self._for_kernels._numba_type_

    def __call__(self, *args: Any) -> Any:
        compiler()
        return self._for_python(*args)


class Intrinsic:
    """LLVM's instructions for kernels: `body` as `numba.extending.intrinsic` takes it, where our
    vectors may stand for their types in the signature it returns."""

    def __init__(self, body: Callable[..., Any], prefer_literal: bool) -> None:
        self._body, self._prefer_literal = body, prefer_literal

    @cached_property
    def _numba_type_(self) -> Any:
        from numba.core.typing.templates import signature
        from numba.extending import intrinsic

        @wraps(self._body)
        def body(*args: Any) -> Any:
            found = self._body(*args)
            if found is None:
                return None
            call, emit = found
            return signature(_type(call.return_type), *map(_type, call.args)), emit

        made = intrinsic(prefer_literal=self._prefer_literal)(body)
        context = import_module("numba.core.registry").cpu_target.typing_context
        context.refresh()
        return context.resolve_value_type(made)


def _type(kind: Any) -> Any:
    """The type in a signature, which may be a `Vector`."""
    return getattr(kind, "numba_type", kind)


def intrinsic(body: Callable[..., Any] | None = None, *, prefer_literal: bool = False) -> Any:
    """Makes an `Intrinsic` of the function it decorates; `prefer_literal` shows it constants."""
    if body is None:
        return lambda body: Intrinsic(body, prefer_literal)
    return Intrinsic(body, prefer_literal)
