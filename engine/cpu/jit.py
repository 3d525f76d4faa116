"""How kernels are compiled, cached on disk and called by address."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from llvmlite import ir

from engine.cpu.deferred import OPTIONS, Kernel, compiler, intrinsic, types
from engine.cpu.kernel_cache import KernelCache, name_of, own_folder
from engine.cpu.linking import linked
from engine.cpu.simd import load_i64

_CACHE = KernelCache(own_folder())
_LISTENERS: list[Callable[[], None]] = []

kernel: Any = Kernel
inlined: Any = partial(Kernel, forceinline=True)
"""A kernel for inner loops: its constant arguments become constants of the caller's code."""


def on_compilation(listener: Callable[[], None]) -> None:
    """Call `listener` before each verb that has to be compiled: not when the disk cache has it."""
    _LISTENERS.append(listener)


class Verb:
    """A kernel with int64 arguments that other kernels call by address.

    One attention or matrix kernel then serves every format: the call costs nanoseconds per page or
    row, and N formats need N bodies.  It is compiled when its address is first asked for.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.body = body

    @cached_property
    def address(self) -> int:
        name = name_of(self.body)
        found = _CACHE.read(name)
        if found is None:
            found = self._compiled()
            _CACHE.write(name, found)
        symbol, _, code = found.partition(b"\n")
        return linked(code, symbol.decode())

    @cached_property
    def function(self) -> Callable[..., None]:
        """The kernel for Python to call; other threads of Python run meanwhile."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * self._arity)(self.address)

    @property
    def _arity(self) -> int:
        return self.body.__code__.co_argcount

    def _compiled(self) -> bytes:
        """The symbol to call, a line break, object code."""
        for listener in _LISTENERS:
            listener()
        signature = f"void({', '.join(['int64'] * self._arity)})"
        compiled: Any = compiler().cfunc(signature, **OPTIONS)(self.body)
        _, _, (code, _) = compiled._library.serialize_using_object_code()
        return compiled.native_name.encode() + b"\n" + code


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
