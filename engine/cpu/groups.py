"""Verbs on groups of 16 packed rows (`engine.cpu.layouts`), a pair per weight type.

    dot(group, apart, x, columns, out)       float32 [2, 16] at out: the rows' products with x, and
                                             those of the group `apart` bytes further on
    panel(group, columns, first, n, target)  sets first..first+n as weights for a matrix product

Two groups at once: a thread that reads from two places gets more from memory than from one, and
what is read of x serves both.

x is a row of 16-bit integers (`engine.cpu.activations`) for quantized types.  A panel is bf16
pairs [n, 16, 16 rows, 2], pair i of a set being its columns i and i + 16, for the tile registers;
or float32 [n, 32, 16 rows], for everyone else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from engine.cpu.activations import steps_of
from engine.cpu.amx import pair_bf16
from engine.cpu.dot import dot_bytes, four_bytes
from engine.cpu.jit import Verb, inlined
from engine.cpu.layouts import LANES, LAYOUTS, LEVELS, SET, Layout
from engine.cpu.lookup import look_up_64
from engine.cpu.planes import step_codes
from engine.cpu.simd import (
    address_of,
    bitcast,
    convert,
    f32x16,
    fma,
    i8x16,
    i32x16,
    load,
    load_f32,
    prefetch_first,
    splat,
    store,
    u8x64,
    u32x16,
    zeros,
)
from engine.cpu.vmath import halves

_LEVELS = np.tile(LEVELS, 4)

AHEAD = 3072  # bytes of each group: what memory delivers while it takes to answer


@inlined
def fetch(group, other):
    prefetch_first(group)
    prefetch_first(other)


@inlined
def _codes(line, step, bits, levels):
    """A step of codes, or of the levels at their places, as u32x16."""
    word = step_codes(line, step, bits)
    if levels:
        table = load(u8x64, address_of(_LEVELS))
        word = bitcast(u32x16, look_up_64(table, bitcast(u8x64, word)))
    return word


@inlined
def _sum_steps(codes, other, ahead, planes, first, count, bits, levels):
    """Two i32x16: steps first..first+count of two sets of codes with the bytes at `planes`, 4 per
    step and plane.

    Lines are asked for one by one between the products: all of a set at once would keep the
    next products waiting.
    """
    high, low = zeros(i32x16), zeros(i32x16)
    other_high, other_low = zeros(i32x16), zeros(i32x16)
    for step in range(first, first + count):
        if step * bits % 8 < bits:  # the first step in its line
            line = 64 * (step * bits // 8) + ahead
            fetch(codes + line, other + line)
        a, b = four_bytes(planes + 4 * step), four_bytes(planes + SET + 4 * step)
        u = bitcast(u8x64, _codes(codes, step, bits, levels))
        v = bitcast(u8x64, _codes(other, step, bits, levels))
        high, low = dot_bytes(high, u, a), dot_bytes(low, u, b)
        other_high, other_low = dot_bytes(other_high, v, a), dot_bytes(other_low, v, b)
    return (high << 8) + low, (other_high << 8) + other_low


@inlined
def _bytes(address):
    return convert(f32x16, load(i8x16, address))


@inlined
def _splat_at(address):
    return splat(f32x16, load_f32(address))


@inlined
def _product(sums, step, sum_x, zero):
    """Sums of codes times integers, as those of codes less their zero times x."""
    product = convert(f32x16, sums) * step
    return fma(sum_x, splat(f32x16, zero), product) if zero != 0 else product


def _offsets(layout: Layout) -> tuple[int, ...]:
    """Where a unit's scales, minima, d and dmin begin, and where it ends."""
    return tuple(accumulate(layout.parts))


def _block_dot(layout: Layout) -> Verb:
    """Types whose sets have an f16 scale each."""
    bits, zero, minima = layout.bits, np.float32(-layout.zero), layout.minima
    levels = layout.levels
    at_scales, at_minima, _, _, unit = _offsets(layout)
    ahead = -(-AHEAD // unit) * unit  # whole units: every line of codes is asked for once

    def dot(group, apart, x, columns, out):
        steps, sums, _ = steps_of(x, columns)
        other = group + apart
        a, b = zeros(f32x16), zeros(f32x16)
        low_a, low_b = zeros(f32x16), zeros(f32x16)
        for k in range(columns // SET):
            fetch(group + at_scales + ahead, other + at_scales + ahead)
            p, q = _sum_steps(group, other, ahead, x + 64 * k, 0, 8, bits, levels)
            step, sum_x = _splat_at(steps + 4 * k), _splat_at(sums + 4 * k)
            a = fma(_product(p, step, sum_x, zero), halves(group + at_scales), a)
            b = fma(_product(q, step, sum_x, zero), halves(other + at_scales), b)
            if minima:
                low_a = fma(sum_x, halves(group + at_minima), low_a)
                low_b = fma(sum_x, halves(other + at_minima), low_b)
            group += unit
            other += unit
        store(out, a + low_a)
        store(out + 64, b + low_b)

    return Verb(dot)


def _super_dot(layout: Layout) -> Verb:
    """Types with int8 scales under an f16 per 256 columns."""
    bits, zero, minima = layout.bits, np.float32(-layout.zero), layout.minima
    levels, parts = layout.levels, SET // layout.sub  # scales per set
    count = 8 // parts
    at_scales, at_minima, at_d, at_dmin, unit = _offsets(layout)
    share = (unit - at_scales) // 8  # of a unit's metadata, for each of its sets

    def dot(group, apart, x, columns, out):
        steps, sums, half_sums = steps_of(x, columns)
        sums = half_sums if parts == 2 else sums
        other = group + apart
        a, b = zeros(f32x16), zeros(f32x16)
        low_a, low_b = zeros(f32x16), zeros(f32x16)
        for _ in range(columns // 256):
            in_a, in_b = zeros(f32x16), zeros(f32x16)
            in_low_a, in_low_b = zeros(f32x16), zeros(f32x16)
            for k in range(8):
                metadata = at_scales + share * k + unit
                fetch(group + metadata, other + metadata)
                step = _splat_at(steps)
                codes, others = group + 64 * bits * k, other + 64 * bits * k
                for part in range(parts):
                    first = count * part
                    p, q = _sum_steps(codes, others, unit, x, first, count, bits, levels)
                    sum_x, at = _splat_at(sums), LANES * (parts * k + part)
                    scale, other_scale = group + at_scales + at, other + at_scales + at
                    in_a = fma(_product(p, step, sum_x, zero), _bytes(scale), in_a)
                    in_b = fma(_product(q, step, sum_x, zero), _bytes(other_scale), in_b)
                    if minima:
                        in_low_a = fma(sum_x, _bytes(group + at_minima + at), in_low_a)
                        in_low_b = fma(sum_x, _bytes(other + at_minima + at), in_low_b)
                    sums += 4
                steps += 4
                x += 64
            a, b = fma(in_a, halves(group + at_d), a), fma(in_b, halves(other + at_d), b)
            if minima:
                low_a = fma(in_low_a, halves(group + at_dmin), low_a)
                low_b = fma(in_low_b, halves(other + at_dmin), low_b)
            group += unit
            other += unit
        store(out, a + low_a)
        store(out + 64, b + low_b)

    return Verb(dot)


@inlined
def _scale(scales, d, i, is_super):
    """Scale i of a unit."""
    if is_super:
        return _bytes(scales + LANES * i) * halves(d)
    return halves(scales)


@inlined
def _byte(word, c):
    """Byte c of every lane as float32."""
    return convert(f32x16, bitcast(i32x16, (word >> (8 * c)) & 255))


def _panel(layout: Layout, paired: bool) -> Verb:
    bits, zero, levels = layout.bits, np.float32(-layout.zero), layout.levels
    minima, is_super = layout.minima, layout.super
    at_scales, at_minima, at_d, at_dmin, unit = _offsets(layout)
    parts, sets = SET // layout.sub, layout.block // SET
    set_nbytes = 1024 if paired else 2048

    def panel(group, columns, first, n, target):
        for k in range(first, first + n):
            codes = group + k // sets * unit
            scales, lows = codes + at_scales, codes + at_minima
            d, dmin = codes + at_d, codes + at_dmin
            # the set's halves may share their scale
            i = parts * (k % sets)
            j = i + parts - 1
            s, t = _scale(scales, d, i, is_super), _scale(scales, d, j, is_super)
            o, p = s * zero, t * zero
            if minima:
                o, p = _scale(lows, dmin, i, is_super), _scale(lows, dmin, j, is_super)
            for step in range(4):
                u = _codes(codes, 8 * (k % sets) + step, bits, levels)
                v = _codes(codes, 8 * (k % sets) + step + 4, bits, levels)
                for c in range(4):
                    a, b = fma(_byte(u, c), s, o), fma(_byte(v, c), t, p)
                    row = target + 64 * (4 * step + c)
                    if paired:
                        store(row, pair_bf16(a, b))
                    else:
                        store(row, a)
                        store(row + 64 * LANES, b)
            target += set_nbytes

    return Verb(panel)


@dataclass(frozen=True)
class GroupVerbs:
    """The verbs of one type: `pairs` is the panel for tile registers, `floats` the plain one."""

    dot: Verb
    pairs: Verb
    floats: Verb


def _verbs(layout: Layout) -> GroupVerbs:
    dot = _super_dot(layout) if layout.super else _block_dot(layout)
    return GroupVerbs(dot, _panel(layout, True), _panel(layout, False))


GROUPS = {name: _verbs(layout) for name, layout in LAYOUTS.items()}
