"""Rows of 32 bytes, one per token, side by side: the units that `kv_blocks` multiplies.

A unit is made of lanes of four bytes: in `turn` a lane is a token and the bytes are its channels,
in `interleave` a lane is a channel and the bytes are of four tokens.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from engine.cpu.deferred import intrinsic, types
from engine.cpu.simd import f32x16, pointer, u8x32

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _shuffled(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _zipped(builder: Any, a: Any, b: Any, bits: int) -> list[Any]:
    """Elements of `bits` bits of a and b in turn, from the lower and the upper 8 bytes of either
    half: registers of 32 bytes do this without crossing halves."""
    count = 256 // bits
    quarter, kind = count // 4, ir.VectorType(ir.IntType(bits), count)
    a, b = builder.bitcast(a, kind), builder.bitcast(b, kind)
    found = []
    for start in (0, quarter):
        first = [half + start + i for half in (0, 2 * quarter) for i in range(quarter)]
        lanes = [lane for i in first for lane in (i, count + i)]
        found.append(_shuffled(builder, a, b, lanes))
    return found


def _store(builder: Any, address: Any, offset: int, value: Any) -> None:
    builder.store(value, pointer(builder, builder.add(address, _I64(offset))), align=1)


@intrinsic
def turn(typing_context, a, b, c, d, e, f, g, h, target):
    """Rows u8x32 of eight tokens as eight rows of four bytes of each, 64 bytes apart."""

    def emit(context, builder, signature, args):
        kind, halves = ir.VectorType(_I32, 8), []
        rows = [builder.bitcast(row, kind) for row in args[:8]]
        for start in (0, 4):
            lanes = [*range(start, start + 4), *range(8 + start, 12 + start)]
            halves.append([_shuffled(builder, rows[i], rows[i + 4], lanes) for i in range(4)])
        for half, (r, s, t, u) in enumerate(halves):
            pairs = zip(_zipped(builder, r, s, 32), _zipped(builder, t, u, 32), strict=True)
            words = [word for x, y in pairs for word in _zipped(builder, x, y, 64)]
            for i, word in enumerate(words):
                _store(builder, args[8], 64 * (4 * half + i), word)
        return context.get_dummy_value()

    return types.void(*(u8x32,) * 8, types.int64), emit


@intrinsic
def interleave(typing_context, a, b, c, d, first, second):
    """Rows u8x32 of four tokens as the 64 bytes of two units.

    The first one's lanes are the channels 0-3, 16-19, 4-7, 20-23, the other's those 8 further on.
    """

    def emit(context, builder, signature, args):
        a, b, c, d, *targets = args
        pairs = zip(_zipped(builder, a, b, 8), _zipped(builder, c, d, 8), strict=True)
        for (x, y), target in zip(pairs, targets, strict=True):
            for i, quad in enumerate(_zipped(builder, x, y, 16)):
                _store(builder, target, 32 * i, quad)
        return context.get_dummy_value()

    return types.void(*(u8x32,) * 4, types.int64, types.int64), emit


def _sixteen(start: int) -> Any:
    fours = [start, start + 8, start + 16, start + 24]
    lanes = [four + i for four in fours for i in range(4)]

    @intrinsic
    def channels(typing_context, first, second):
        def emit(context, builder, signature, args):
            return _shuffled(builder, args[0], args[1], lanes)

        return f32x16(first, second), emit

    return channels


lower_channels, upper_channels = _sixteen(0), _sixteen(4)
"""The first and the last 16 channels in their order, from lanes of the two units `interleave`s."""
