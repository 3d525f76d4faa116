"""Instructions of AVX-512 DQ on all 16 lanes of float32 vectors.

Kernels with them are compiled everywhere; on other hosts they trap.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic
from engine.cpu.host import AVX512DQ
from engine.cpu.simd import f32x16

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_AS_SET = 4  # round as the processor is set


def _call(builder: Any, name: str, args: list[Any]) -> Any:
    """The value of `name` for its operands, no lane masked."""
    if not AVX512DQ:
        trap = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, trap, "llvm.trap"), [])
        return args[0]
    args = [*args, ir.Constant(f32x16.llvm, None), _I16(0xFFFF), _I32(_AS_SET)]
    kind = ir.FunctionType(f32x16.llvm, [arg.type for arg in args])
    full = f"llvm.x86.avx512.mask.{name}.ps.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, full), args)


def of_one(name: str, *how: int) -> Any:
    """`name` of f32x16, and of constants that say how."""

    @intrinsic
    def of_one(typing_context, x):
        def emit(context, builder, signature, args):
            return _call(builder, name, [*args, *map(_I32, how)])

        return x(x), emit

    return of_one


def of_two(name: str, *how: int) -> Any:
    """The same of two f32x16."""

    @intrinsic
    def of_two(typing_context, x, y):
        def emit(context, builder, signature, args):
            return _call(builder, name, [*args, *map(_I32, how)])

        return x(x, y), emit

    return of_two
