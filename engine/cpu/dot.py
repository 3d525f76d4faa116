"""Sums of byte products: VNNI's vpdpbusd where the host has it, plain operations elsewhere."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from engine.cpu.host import VNNI
from engine.cpu.jit import kernel
from engine.cpu.simd import (
    bitcast,
    i8x64,
    i32x16,
    intrinsic,
    load_i32,
    splat,
    u8x64,
    u32x16,
)


def _vnni(builder: Any, sums: Any, u: Any, s: Any) -> Any:
    kind = ir.FunctionType(i32x16.llvm, [i32x16.llvm, u8x64.llvm, i8x64.llvm])
    name = "llvm.x86.avx512.vpdpbusd.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [sums, u, s])


def _portable(builder: Any, sums: Any, u: Any, s: Any) -> Any:
    words = u32x16.llvm
    unsigned, signed = builder.bitcast(u, words), builder.bitcast(s, words)

    def lanes(value: int) -> Any:
        return ir.Constant(words, [value] * 16)

    for byte in range(4):
        x = builder.and_(builder.lshr(unsigned, lanes(8 * byte)), lanes(255))
        y = builder.ashr(builder.shl(signed, lanes(24 - 8 * byte)), lanes(24))
        sums = builder.add(sums, builder.mul(x, y))
    return sums


def _dot_bytes(emit_body: Any) -> Any:
    @intrinsic
    def dot_bytes(typing_context, sums, u, s):
        def emit(context, builder, signature, args):
            return emit_body(builder, *args)

        return i32x16(i32x16, u8x64, i8x64), emit

    return dot_bytes


dot_bytes_portable = _dot_bytes(_portable)
dot_bytes = _dot_bytes(_vnni) if VNNI else dot_bytes_portable
"""sums i32x16 + the products of bytes 4 i .. 4 i + 3 of u u8x64 and s i8x64 in lane i, exactly."""


@kernel
def four_bytes(address):
    """The four bytes at `address` in every lane, as i8x64."""
    return bitcast(i8x64, splat(i32x16, load_i32(address)))
