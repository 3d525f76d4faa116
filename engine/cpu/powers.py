"""2^x for attention on tile registers, on hosts that have these: AVX-512 takes a number apart and
puts it together in one instruction each, where `engine.cpu.vmath` needs six.

Call only where `engine.cpu.host.AMX` is true, as `engine.cpu.amx`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from engine.cpu.avx512 import of_one, of_two
from engine.cpu.deferred import cgutils, intrinsic, types
from engine.cpu.host import AMX
from engine.cpu.jit import inlined
from engine.cpu.simd import f32x16, fma, splat

_FLUSH = 1 << 15  # of the control register
# minimax for 2^r, 0 <= r < 1, relative, to 3e-6: what two bfloat16 hold; exact at 0
_POWERS = tuple(
    np.float32(c) for c in (1.3426811e-2, 5.2242048e-2, 2.4128065e-1, 6.9304472e-1, 1.0)
)

_fraction, _scaled = of_one("reduce", 1), of_two("scalef")
"""x - floor(x), 0 for infinities; p 2^floor(x)."""


def _flushing(on: bool) -> Any:
    @intrinsic
    def switch(typing_context):
        def emit(context, builder, signature, args):
            if not AMX:
                return context.get_dummy_value()
            place = cgutils.alloca_once(builder, ir.IntType(32))
            kind = ir.FunctionType(ir.VoidType(), [place.type])
            read, write = (
                cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")
                for name in ("stmxcsr", "ldmxcsr")
            )
            builder.call(read, [place])
            word, bit = builder.load(place), ir.Constant(ir.IntType(32), _FLUSH)
            word = builder.or_(word, bit) if on else builder.and_(word, builder.not_(bit))
            builder.store(word, place)
            builder.call(write, [place])
            return context.get_dummy_value()

        return types.void(), emit

    return switch


subnormals_vanish, subnormals_return = _flushing(True), _flushing(False)
"""Results too small for normal numbers are 0 between these two: making one takes 150 cycles."""


@inlined
def vexp2(x):
    """2^x of f32x16 to 3e-6; 0 and infinity where that is beyond float32."""
    r = _fraction(x)
    p = splat(f32x16, _POWERS[0])
    for c in _POWERS[1:]:
        p = fma(p, r, splat(f32x16, c))
    return _scaled(p, x)
