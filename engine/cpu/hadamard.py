"""Hadamard transforms of rows, `block` channels at a time (`engine.kv.modifiers`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir

from engine.cpu.deferred import intrinsic
from engine.cpu.jit import Verb, field, inlined
from engine.cpu.program import Program
from engine.cpu.simd import (
    convert,
    f32x16,
    fma,
    iota,
    load,
    load_f32,
    splat,
    store,
    store_f32,
    u32x16,
)
from engine.kv.modifiers import hadamard_block
from engine.memory import address

_VALUES = 1 << 12  # values of one item: some microseconds


@intrinsic(prefer_literal=True)
def _swap_lanes(typing_context, value, distance):
    """Lane i: lane i xor `distance` (a constant)."""
    step = distance.literal_value

    def emit(context, builder, signature, args):
        kind = ir.VectorType(ir.IntType(32), value.lanes)
        order = ir.Constant(kind, [lane ^ step for lane in range(value.lanes)])
        return builder.shuffle_vector(args[0], args[0], order)

    return value(value, distance), emit


def _lanes_stage(distance: int, shift: int) -> Any:
    @inlined
    def stage(x):
        """Sums in the lower lane of pairs `distance` apart, differences in the upper."""
        upper = convert(f32x16, (iota(u32x16) >> shift) & 1)
        sign = fma(upper, splat(f32x16, np.float32(-2)), splat(f32x16, np.float32(1)))
        return fma(x, sign, _swap_lanes(x, distance))

    return stage


_stage_1, _stage_2, _stage_4, _stage_8 = (_lanes_stage(1 << shift, shift) for shift in range(4))


@inlined
def butterflies(target, nbytes, block):
    """Sums and differences of vectors of float32 at growing distances, `block` bytes together."""
    distance = 64
    while distance < block:
        for start in range(0, nbytes, 2 * distance):
            for c in range(start, start + distance, 64):
                x, y = load(f32x16, target + c), load(f32x16, target + c + distance)
                store(target + c, x + y)
                store(target + c + distance, x - y)
        distance *= 2


@inlined
def _wide_row(source, target, dim, block, factor):
    """Blocks of whole vectors."""
    for c in range(0, 4 * dim, 64):
        x = load(f32x16, source + c) * factor
        store(target + c, _stage_8(_stage_4(_stage_2(_stage_1(x)))))
    butterflies(target, 4 * dim, 4 * block)


@inlined
def _narrow_row(source, target, dim, block, factor):
    """Blocks of 1 to 8 channels."""
    for c in range(0, 4 * dim, 4):
        store_f32(target + c, load_f32(source + c) * factor)
    distance = 4
    while distance < 4 * block:
        for start in range(0, 4 * dim, 2 * distance):
            for c in range(start, start + distance, 4):
                x, y = load_f32(target + c), load_f32(target + c + distance)
                store_f32(target + c, x + y)
                store_f32(target + c + distance, x - y)
        distance *= 2


def _transform(arguments, item, slot):
    """Fields: source, target, rows, D, block, address of 1 / sqrt(block), rows per item."""
    dim, block, factor = field(arguments, 4), field(arguments, 5), load_f32(field(arguments, 6))
    count = field(arguments, 7)
    for r in range(item * count, min(field(arguments, 3), (item + 1) * count)):
        source, target = field(arguments, 1) + 4 * dim * r, field(arguments, 2) + 4 * dim * r
        if block >= 16:
            _wide_row(source, target, dim, block, factor)
        else:
            _narrow_row(source, target, dim, block, factor)


_TRANSFORM = Verb(_transform)


def hadamard(program: Program, x: np.ndarray, out: np.ndarray) -> None:
    """out = x hadamard_matrix(D) for contiguous float32 [..., D]."""
    dim = x.shape[-1]
    block, rows, count = hadamard_block(dim), x.size // dim, max(1, _VALUES // dim)
    factor = np.array([1 / math.sqrt(block)], np.float32)
    program.hold(factor)
    program.add(
        _TRANSFORM, -(-rows // count),
        address(x), address(out), rows, dim, block, address(factor), count,
    )  # fmt: skip
