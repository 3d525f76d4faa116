"""Verbs on groups of 16 packed rows (`engine.cpu.layouts`), a pair per weight type.

    dot(group, x, columns, out)              float32 [16] at out: the rows' products with x
    panel(group, columns, first, n, target)  sets first..first+n as weights for a matrix product

x is a row of 16-bit integers (`engine.cpu.activations`) for quantized types.  A panel is bf16
pairs [n, 16, 16 rows, 2], pair i of a set being its columns i and i + 16, for the tile registers;
or float32 [n, 32, 16 rows], for everyone else.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    f16x16,
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

_AHEAD = 3072  # bytes: what memory delivers while it takes to answer


@inlined
def _sum_steps(codes, planes, k, first, count, bits):
    """i32x16: steps first..first+count of set k with the bytes at `planes`, 64 for the set."""
    high, low = zeros(i32x16), zeros(i32x16)
    for j in range(first, first + count):
        u = bitcast(u8x64, step_codes(codes, 8 * k + j, bits))
        high = dot_bytes(high, u, four_bytes(planes + 4 * j))
        low = dot_bytes(low, u, four_bytes(planes + SET + 4 * j))
    return (high << 8) + low


@inlined
def _halves(address):
    return convert(f32x16, load(f16x16, address))


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


def _offsets(layout: Layout) -> tuple[int, int, int, int]:
    """Bytes per 256 columns of the parts in front of scales, minima, d and dmin."""
    codes, scales = layout.codes_nbytes(256), layout.scales_nbytes(256)
    minima = scales if layout.minima else 0
    d = codes + scales + minima
    return codes, codes + scales, d, d + layout.steps_nbytes(256)


def _block_dot(layout: Layout) -> Verb:
    """Types whose sets have an f16 scale each."""
    bits, zero, minima = layout.bits, np.float32(-layout.zero), layout.minima

    def dot(group, x, columns, out):
        scales = group + 2 * bits * columns
        lows = scales + columns
        steps, sums, _ = steps_of(x, columns)
        total, offset = zeros(f32x16), zeros(f32x16)
        for k in range(columns // SET):
            _fetch(group + 64 * bits * k, 64 * bits)
            product = convert(f32x16, _sum_steps(group, x + 64 * k, k, 0, 8, bits))
            product = product * _splat_at(steps + 4 * k)
            if zero != 0:
                product = fma(_splat_at(sums + 4 * k), splat(f32x16, zero), product)
            total = fma(product, _halves(scales + 32 * k), total)
            if minima:
                offset = fma(_splat_at(sums + 4 * k), _halves(lows + 32 * k), offset)
        store(out, total + offset)

    return Verb(dot)


def _super_dot(layout: Layout) -> Verb:
    """Types with int8 scales under an f16 per 256 columns."""
    bits, zero, minima = layout.bits, np.float32(-layout.zero), layout.minima
    parts = SET // layout.sub  # scales per set
    count = 8 // parts
    offsets = _offsets(layout)
    at_scales, at_minima, at_d, at_dmin = offsets

    def dot(group, x, columns, out):
        blocks = columns // 256
        scales, lows = group + blocks * at_scales, group + blocks * at_minima
        d, dmin = group + blocks * at_d, group + blocks * at_dmin
        steps, sums, halves = steps_of(x, columns)
        sums = halves if parts == 2 else sums
        total, offset = zeros(f32x16), zeros(f32x16)
        for b in range(blocks):
            inner, low = zeros(f32x16), zeros(f32x16)
            for k in range(8 * b, 8 * b + 8):
                _fetch(group + 64 * bits * k, 64 * bits)
                step = _splat_at(steps + 4 * k)
                for part in range(parts):
                    i = parts * k + part
                    product = _sum_steps(group, x + 64 * k, k, count * part, count, bits)
                    product = convert(f32x16, product) * step
                    if zero != 0:
                        product = fma(_splat_at(sums + 4 * i), splat(f32x16, zero), product)
                    inner = fma(product, _bytes(scales + LANES * i), inner)
                    if minima:
                        low = fma(_splat_at(sums + 4 * i), _bytes(lows + LANES * i), low)
            total = fma(inner, _halves(d + 32 * b), total)
            if minima:
                offset = fma(low, _halves(dmin + 32 * b), offset)
        store(out, total + offset)

    return Verb(dot)


@inlined
def _scale(scales, d, i, k, is_super):
    """Scale i, which belongs to set k."""
    if is_super:
        return _bytes(scales + LANES * i) * _halves(d + 32 * (k // 8))
    return _halves(scales + 2 * LANES * i)


@inlined
def _codes(word, c):
    """Byte c of every lane as float32."""
    return convert(f32x16, bitcast(i32x16, (word >> (8 * c)) & 255))


def _panel(layout: Layout, paired: bool) -> Verb:
    bits, zero = layout.bits, np.float32(-layout.zero)
    minima, is_super = layout.minima, layout.super
    at_scales, at_minima, at_d, at_dmin = _offsets(layout)
    parts = SET // layout.sub
    set_nbytes = 1024 if paired else 2048

    def panel(group, columns, first, n, target):
        scales = group + columns * at_scales // 256
        lows = group + columns * at_minima // 256
        d, dmin = group + columns * at_d // 256, group + columns * at_dmin // 256
        for k in range(first, first + n):
            # the set's halves may share their scale
            i, j = parts * k, parts * k + parts - 1
            s, t = _scale(scales, d, i, k, is_super), _scale(scales, d, j, k, is_super)
            o, p = s * zero, t * zero
            if minima:
                o, p = _scale(lows, dmin, i, k, is_super), _scale(lows, dmin, j, k, is_super)
            for step in range(4):
                u = step_codes(group, 8 * k + step, bits)
                v = step_codes(group, 8 * k + step + 4, bits)
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
