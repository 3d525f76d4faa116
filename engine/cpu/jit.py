"""How kernels are compiled, cached on disk and called by address."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types

from engine.cpu.kernel_cache import KernelCache, name_of, own_folder
from engine.cpu.simd import intrinsic, load_i64

_CACHE = KernelCache(own_folder())
_ENGINES: list[binding.ExecutionEngine] = []

# Numba's runtime has it and is far slower to set up; only errors, which no kernel raises, call it.
binding.add_symbol("NRT_Free", ctypes.cast(ctypes.pythonapi.PyMem_Free, ctypes.c_void_p).value)

_OPTIONS: dict[str, Any] = {
    "boundscheck": False,
    "error_model": "numpy",
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
    def address(self) -> int:
        name = name_of(self.body)
        found = _CACHE.read(name)
        if found is None:
            found = self._compiled()
            _CACHE.write(name, found)
        symbol, _, code = found.partition(b"\n")
        return _linked(code).get_function_address(symbol.decode())

    @cached_property
    def function(self) -> Callable[..., None]:
        """The kernel for Python to call; other threads of Python run meanwhile."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * self._arity)(self.address)

    @property
    def _arity(self) -> int:
        return self.body.__code__.co_argcount

    def _compiled(self) -> bytes:
        """The symbol to call, a line break, object code."""
        signature = f"void({', '.join(['int64'] * self._arity)})"
        compiled: Any = numba.cfunc(signature, **_OPTIONS)(self.body)
        _, _, (code, _) = compiled._library.serialize_using_object_code()
        return compiled.native_name.encode() + b"\n" + code


def _linked(code: bytes) -> binding.ExecutionEngine:
    """An engine of LLVM that holds object code for as long as the process lives."""
    target = binding.Target.from_default_triple().create_target_machine(jit=True)
    # one for each verb: functions that several call are in the code of each
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return engine


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
