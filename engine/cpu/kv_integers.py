"""Products of float32 rows with unpacked codes, in integers: the inner loops of per-channel pages.

A row becomes two planes of signed bytes, x = scale (256 high + low) to 16 bits, and its products
with codes are exact sums of byte products, on tile registers or with `dot_bytes`: the same bits
either way.

Rows come in blocks of `block` rows (8 or 16): int8 [2 block, depth], the high planes of all
rows and then the low ones, `depth` a multiple of 64.  Codes come in units of 16 lanes: steps of 64
bytes, four codes per lane, depth / 4 steps one after another.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.amx import bytes_add, bytes_add_upper, sums_store, sums_store_upper, sums_zero
from engine.cpu.dot import dot_bytes, four_bytes
from engine.cpu.jit import inlined
from engine.cpu.kv_floats import fetch, larger_magnitude
from engine.cpu.planes import step_codes
from engine.cpu.simd import (
    bitcast,
    convert,
    f32x16,
    fma,
    i32x16,
    load,
    reduce_add,
    reduce_max,
    splat,
    store,
    u8x16,
    u8x64,
    u32x16,
    zeros,
)

_AHEAD = 2048  # bytes between the codes that are unpacked and those that are asked for
_TOP = 127 * 256  # the largest magnitude whose high byte fits
_NEGLIGIBLE = np.float32(1e-30)
_ROUNDER = np.float32(1.5 * 2**23)  # x + this ends in the 16 bits of x rounded to an integer


@inlined
def block_rows(rows):
    """Rows of a block: half a pair of tiles for the few rows of a single query."""
    return 8 if rows <= 8 else 16


@inlined
def unpack_sets(codes, steps, bits, target):
    """`steps` steps (a multiple of 8) of packed codes as 64 bytes each."""
    for _ in range(0, steps, 8):
        fetch(codes + _AHEAD, bits)
        for j in range(8):
            store(target + 64 * j, step_codes(codes, j, bits))
        codes += 64 * bits
        target += 512


@inlined
def fetch_page(page, codes_nbytes):
    """Ask for what verbs read first: the first codes, and norms and ranges behind all codes."""
    fetch(page + codes_nbytes, 16)
    fetch(page, _AHEAD // 64)


@inlined
def split_row(values, depth, planes, block):
    """Write the planes of float32 [depth]; returns their scale and the sum of 256 high + low.

    Rows without a value above 1e-30 become zeros.
    """
    top = zeros(f32x16)
    for c in range(0, 4 * depth, 64):
        top = larger_magnitude(top, load(f32x16, values + c))
    largest, total = reduce_max(top), zeros(f32x16)
    # what is smaller counts for nothing beside scores and weights near 1, and its factor overflows
    factor = np.float32(_TOP) / largest if largest > _NEGLIGIBLE else np.float32(0)
    many, shift = splat(f32x16, factor), splat(f32x16, _ROUNDER)
    for c in range(0, depth, 16):
        rounded = fma(load(f32x16, values + 4 * c), many, shift)
        total, whole = total + (rounded - _ROUNDER), bitcast(u32x16, rounded)
        store(planes + c, convert(u8x16, (whole + 128) >> 8))
        store(planes + block * depth + c, convert(u8x16, whole))
    return largest * np.float32(1 / _TOP), reduce_add(total)


@inlined
def _add_unit(planes, low, depth, rows, codes, sums, low_sums, stride):
    """Sums of one unit without tiles: two rows at a time share the codes they load."""
    for i in range(0, rows, 2):
        j = min(i + 1, rows - 1)
        first, second = planes + i * depth, planes + j * depth
        a, b, c, d = zeros(i32x16), zeros(i32x16), zeros(i32x16), zeros(i32x16)
        for k in range(0, depth, 4):
            step = load(u8x64, codes + 16 * k)
            a = dot_bytes(a, step, four_bytes(first + k))
            b = dot_bytes(b, step, four_bytes(first + low + k))
            c = dot_bytes(c, step, four_bytes(second + k))
            d = dot_bytes(d, step, four_bytes(second + low + k))
        store(sums + stride * i, a)
        store(low_sums + stride * i, b)
        store(sums + stride * j, c)
        store(low_sums + stride * j, d)


@inlined
def products(planes, depth, block, rows, codes, unit_nbytes, units, sums, tiles):
    """int32 sums [2 block, 16 units] of a block's `rows` rows with units `unit_nbytes` apart.

    Units are taken in pairs, so an odd number of them needs room for one more.  All sums are
    written before any is read: a load right behind a tile's store would wait for it.  `tiles`, a
    constant, says whether tile registers, configured by the caller, do the work.
    """
    stride, low = sums_stride(units), block * depth
    for unit in range(0, units, 2):
        first, target = codes + unit_nbytes * unit, sums + 64 * unit
        second = first + unit_nbytes
        if tiles:
            sums_zero()
            if block == 8:
                bytes_add_upper(planes, depth, first, second, depth // 64)
                sums_store_upper(target, stride)
            else:
                bytes_add(planes, depth, first, second, depth // 64)
                sums_store(target, stride)
        else:
            low_target = target + stride * block
            _add_unit(planes, low, depth, rows, first, target, low_target, stride)
            _add_unit(planes, low, depth, rows, second, target + 64, low_target + 64, stride)


@inlined
def sums_stride(units):
    """Bytes of a row of sums: not a power of two, whose rows would share a cache set."""
    return 64 * ((units + 1) & ~1) + 64


@inlined
def sum_at(high, low):
    """256 high + low as f32x16 from the sums at two addresses, exact however long a page is."""
    a, b = convert(f32x16, load(i32x16, high)), convert(f32x16, load(i32x16, low))
    return fma(a, splat(f32x16, np.float32(256)), b)
