"""How far float32 vectors are from integers, limited in size, and sums of four at once.

Hosts with AVX-512 DQ have instructions for the first two; elsewhere they are several operations
with the same results.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from engine.cpu.avx512 import of_one, of_two
from engine.cpu.deferred import intrinsic
from engine.cpu.host import AVX512DQ
from engine.cpu.jit import inlined
from engine.cpu.simd import bitcast, f32x16, rint, u32x16
from engine.cpu.vmath import smaller


@inlined
def from_nearest_portable(v):
    return v - rint(v)


@inlined
def limited_portable(v, limit):
    pattern = bitcast(u32x16, v)
    found = smaller(bitcast(f32x16, pattern & 0x7FFFFFFF), limit)
    return bitcast(f32x16, bitcast(u32x16, found) | (pattern & 0x80000000))


from_nearest: Any = of_one("reduce", 0) if AVX512DQ else from_nearest_portable
"""v - rint(v) of finite f32x16 v."""

limited: Any = of_two("range", 2) if AVX512DQ else limited_portable
"""sign(v) min(|v|, limit) of f32x16 without NaN, limit >= 0."""


@intrinsic
def four_sums(typing_context, a, b, c, d):
    """f32x16 whose lanes 0, 4, 8 and 12 are the sums of four f32x16, each in `reduce_add`'s order,
    by half the operations of four reductions."""

    def emit(context, builder, signature, args):
        kind = ir.VectorType(ir.IntType(32), 16)

        def lanes(x: Any, y: Any, order: list[int]) -> Any:
            return builder.shuffle_vector(x, y, ir.Constant(kind, order))

        def halved(x: Any, y: Any, width: int) -> Any:
            """The sums of both halves of x's runs of `width` lanes, then those of y's."""
            low = [i for i in range(32) if i % width < width // 2]
            high = [i + width // 2 for i in low]
            return builder.fadd(lanes(x, y, low), lanes(x, y, high))

        x, y, z, t = args
        found = halved(halved(x, y, 16), halved(z, t, 16), 8)
        for apart in (2, 1):
            found = builder.fadd(found, lanes(found, found, [i ^ apart for i in range(16)]))
        return found

    return a(a, a, a, a), emit
