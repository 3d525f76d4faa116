"""Packed codes as vectors: the bit planes of `engine.bits`, for weights and for pages alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llvmlite import ir

from engine.cpu.deferred import intrinsic, types
from engine.cpu.jit import inlined, kernel
from engine.cpu.simd import load, pointer, store, u32x16, zeros


@inlined
def _plane(codes, k, bits, width):
    """Step k's part in the plane of `width` bits: 64 bytes, from bit 0."""
    per_line, step = 8 // width, k & 7
    line = (k >> 3) * bits + (bits & (-2 * width)) + step // per_line
    part = load(u32x16, codes + 64 * line) >> (width * (step % per_line))
    return part & (((1 << width) - 1) * 0x01010101)


@inlined
def step_codes(codes, k, bits):
    """Step k of packed codes: 64 bytes as u32x16, lane i holding its four codes."""
    if bits == 8:
        return load(u32x16, codes + 64 * k)
    word = zeros(u32x16)
    if bits & 4:
        word = _plane(codes, k, bits, 4)
    if bits & 2:
        word = word | (_plane(codes, k, bits, 2) << (bits & 4))
    if bits & 1:
        word = word | (_plane(codes, k, bits, 1) << (bits & 6))
    return word


@inlined
def _pack_plane(steps, target, bits, width):
    per_line, first = 8 // width, bits & (-2 * width)
    mask = ((1 << width) - 1) * 0x01010101
    for line in range(width):
        packed = zeros(u32x16)
        for j in range(per_line):
            step = load(u32x16, steps + 64 * (line * per_line + j))
            packed = packed | (((step >> first) & mask) << (width * j))
        store(target + 64 * (first + line), packed)


@kernel
def pack_set(steps, target, bits):
    """Pack eight steps, bytes [8, 64] at `steps`, into the 64 * bits bytes of a set."""
    if bits == 8:
        _pack_plane(steps, target, bits, 8)
        return
    if bits & 4:
        _pack_plane(steps, target, bits, 4)
    if bits & 2:
        _pack_plane(steps, target, bits, 2)
    if bits & 1:
        _pack_plane(steps, target, bits, 1)


def _shuffled(builder: Any, a: Any, b: Any, lanes: Iterable[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(u32x16.llvm, list(lanes)))


def _zipped(builder: Any, rows: list[Any], n: int) -> list[Any]:
    """Rows i and i + len / 2, taken in turn n lanes from each: from the lower n of every 2 n lanes,
    then from the upper n."""
    found, half = [], len(rows) // 2
    for a, b in zip(rows[:half], rows[half:], strict=True):
        for start in (0, n):
            firsts = range(start, 16, 2 * n)
            lanes = [side + first + i for first in firsts for side in (0, 16) for i in range(n)]
            found.append(_shuffled(builder, a, b, lanes))
    return found


@intrinsic
def gather_steps(typing_context, codes, stride, steps):
    """Codes of 16 lanes `stride` bytes apart, 32 bytes of each, as eight steps [8, 16 lanes, 4]."""

    def emit(context, builder, signature, args):
        address, distance, target = args
        word, half = ir.IntType(64), ir.VectorType(ir.IntType(32), 8)

        def row(lane: int) -> Any:
            at = builder.add(address, builder.mul(distance, word(lane)))
            return builder.load(pointer(builder, at), typ=half, align=1)

        # rows 0 and 8 in one register, 1 and 9 in the next: each half is turned by itself
        rows = [_shuffled(builder, row(i), row(i + 8), range(16)) for i in range(8)]
        for n in (4, 2, 1):
            rows = _zipped(builder, rows, n)
        for step, value in enumerate(rows):
            at = builder.add(target, word(64 * step))
            builder.store(value, pointer(builder, at), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit
