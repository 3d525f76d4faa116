"""Verbs on groups of 16 packed rows (`engine.cpu.layouts`), a pair per weight type.

    dot(group, x, columns, out)              float32 [16] at out: the rows' products with x
    panel(group, columns, first, n, target)  sets first..first+n as weights for a matrix product

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
from engine.cpu.layouts import LANES, LAYOUTS, SET, Layout
from engine.cpu.planes import step_codes
from engine.cpu.simd import (
    bitcast,
    convert,
    f32x16,
    fma,
    i8x16,
    i32x16,
    load,
    load_f32,
    prefetch,
    splat,
    store,
    u8x64,
    zeros,
)
from engine.cpu.vmath import halves

_AHEAD = 8192  # bytes: what memory delivers while it takes to answer


@inlined
def _sum_steps(codes, planes, first, count, bits):
    """i32x16: steps first..first+count with the bytes at `planes`, 4 per step and plane."""
    high, low = zeros(i32x16), zeros(i32x16)
    for j in range(count):
        u = bitcast(u8x64, step_codes(codes, first + j, bits))
        high = dot_bytes(high, u, four_bytes(planes + 4 * j))
        low = dot_bytes(low, u, four_bytes(planes + SET + 4 * j))
    return (high << 8) + low


@inlined
def _bytes(address):
    return convert(f32x16, load(i8x16, address))


@inlined
def _splat_at(address):
    return splat(f32x16, load_f32(address))


@inlined
def _fetch(address, nbytes):
    for line in range(0, nbytes, 64):
        prefetch(address + line + _AHEAD)


def _offsets(layout: Layout) -> tuple[int, ...]:
    """Where a unit's scales, minima, d and dmin begin, and where it ends."""
    return tuple(accumulate(layout.parts))


def _block_dot(layout: Layout) -> Verb:
    """Types whose sets have an f16 scale each."""
    bits, zero, minima = layout.bits, np.float32(-layout.zero), layout.minima
    at_scales, at_minima, _, _, unit = _offsets(layout)

    def dot(group, x, columns, out):
        steps, sums, _ = steps_of(x, columns)
        total, offset = zeros(f32x16), zeros(f32x16)
        for k in range(columns // SET):
            _fetch(group, unit)
            product = convert(f32x16, _sum_steps(group, x + 64 * k, 0, 8, bits))
            product = product * _splat_at(steps + 4 * k)
            if zero != 0:
                product = fma(_splat_at(sums + 4 * k), splat(f32x16, zero), product)
            total = fma(product, halves(group + at_scales), total)
            if minima:
                offset = fma(_splat_at(sums + 4 * k), halves(group + at_minima), offset)
            group += unit
        store(out, total + offset)

    return Verb(dot)


def _super_dot(layout: Layout) -> Verb:
    """Types with int8 scales under an f16 per 256 columns."""
    bits, zero, minima = layout.bits, np.float32(-layout.zero), layout.minima
    parts = SET // layout.sub  # scales per set
    count = 8 // parts
    at_scales, at_minima, at_d, at_dmin, unit = _offsets(layout)

    def dot(group, x, columns, out):
        steps, sums, half_sums = steps_of(x, columns)
        sums = half_sums if parts == 2 else sums
        total, offset = zeros(f32x16), zeros(f32x16)
        for _ in range(columns // 256):
            inner, low = zeros(f32x16), zeros(f32x16)
            for k in range(8):
                _fetch(group + unit // 8 * k, unit // 8)
                step = _splat_at(steps)
                for part in range(parts):
                    i = parts * k + part
                    first = 8 * k + count * part
                    product = _sum_steps(group, x + 4 * count * part, first, count, bits)
                    product = convert(f32x16, product) * step
                    if zero != 0:
                        product = fma(_splat_at(sums), splat(f32x16, zero), product)
                    inner = fma(product, _bytes(group + at_scales + LANES * i), inner)
                    if minima:
                        low = fma(_splat_at(sums), _bytes(group + at_minima + LANES * i), low)
                    sums += 4
                steps += 4
                x += 64
            total = fma(inner, halves(group + at_d), total)
            if minima:
                offset = fma(low, halves(group + at_dmin), offset)
            group += unit
        store(out, total + offset)

    return Verb(dot)


@inlined
def _scale(scales, d, i, is_super):
    """Scale i of a unit."""
    if is_super:
        return _bytes(scales + LANES * i) * halves(d)
    return halves(scales)


@inlined
def _codes(word, c):
    """Byte c of every lane as float32."""
    return convert(f32x16, bitcast(i32x16, (word >> (8 * c)) & 255))


def _panel(layout: Layout, paired: bool) -> Verb:
    bits, zero = layout.bits, np.float32(-layout.zero)
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
                u = step_codes(codes, 8 * (k % sets) + step, bits)
                v = step_codes(codes, 8 * (k % sets) + step + 4, bits)
                for c in range(4):
                    a, b = fma(_codes(u, c), s, o), fma(_codes(v, c), t, p)
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
