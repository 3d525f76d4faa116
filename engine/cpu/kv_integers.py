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
    load_i64,
    reduce_add,
    reduce_max,
    splat,
    store,
    store_f32,
    u8x16,
    u32x16,
    zeros,
)
from engine.cpu.vmath import larger

TOP = 127 * 256  # the largest magnitude whose high byte fits
_NEGLIGIBLE = np.float32(1e-30)
ROUNDER = np.float32(1.5 * 2**23)  # x + this ends in the 22 bits of x rounded to an integer


@inlined
def block_rows(rows):
    """Rows of a block: half a pair of tiles for the few rows of a single query."""
    return 8 if rows <= 8 else 16


@inlined
def unpack_sets(codes, steps, bits, target, ahead):
    """`steps` steps (a multiple of 8) of packed codes as 64 bytes each; what lies `ahead` bytes
    further is asked for."""
    for _ in range(0, steps, 8):
        fetch(codes + ahead, bits)
        for j in range(8):
            store(target + 64 * j, step_codes(codes, j, bits))
        codes += 64 * bits
        target += 512


@inlined
def next_page(page, codes_nbytes, scratch):
    """The distance to the page that comes next, whose metadata is asked for."""
    ahead = load_i64(scratch - 8) - page
    fetch(page + codes_nbytes + ahead, 8)
    return ahead


@inlined
def row_factor(top, limit):
    """What the values of a row are multiplied by, and its inverse, for `top` with their largest to
    become `limit`."""
    largest = reduce_max(top)
    # what is smaller counts for nothing beside scores and weights near 1, and its factor overflows
    factor = np.float32(limit) / largest if largest > _NEGLIGIBLE else np.float32(0)
    return splat(f32x16, factor), largest * np.float32(1 / limit)


@inlined
def split_values(values, factor, planes, low, total):
    """Write the bytes of 16 values times `factor`, `low` bytes apart; adds them to `total`."""
    rounded = fma(values, factor, splat(f32x16, ROUNDER))
    whole = bitcast(u32x16, rounded)
    store(planes, convert(u8x16, (whole + 128) >> 8))
    store(planes + low, convert(u8x16, whole))
    return total + (rounded - ROUNDER)


@inlined
def fold_query(query, steps, lanes, bits, values, depth, planes, low, factors):
    """Split the float32 row `query` times the page's steps into planes of `depth` bytes, `low`
    bytes apart.  Factors: their scale, and what a score has besides their products with codes.

    `values` is room for float32 [depth], zeros from `lanes` on.
    """
    exact, top, total = zeros(f32x16), zeros(f32x16), zeros(f32x16)
    for c in range(0, 4 * lanes, 64):
        part = load(f32x16, query + c)
        exact = fma(part, load(f32x16, steps + 4 * lanes + c), exact)
        part = part * load(f32x16, steps + c)
        top = larger_magnitude(top, part)
        store(values + c, part)
    factor, scale = row_factor(top, TOP)
    for c in range(0, depth, 16):
        total = split_values(load(f32x16, values + 4 * c), factor, planes + c, low, total)
    store_f32(factors, scale)
    center = splat(f32x16, scale * -np.float32(1 << (bits - 1)))
    store_f32(factors + 4, reduce_add(fma(total, center, exact)))


@inlined
def fold_weights(weights, norms, count, bits, depth, planes, low, factors):
    """Split float32 [count] weights >= 0 times norms into planes of `depth` bytes, `low` bytes
    apart.  Factors: their scale, its multiple that a mix has too much, the sum of weights."""
    mass, top, total = zeros(f32x16), zeros(f32x16), zeros(f32x16)
    for t in range(0, 4 * count, 64):
        part = load(f32x16, weights + t) * load(f32x16, norms + t)
        mass, top = mass + part, larger(part, top)
    factor, scale = row_factor(top, TOP)
    for t in range(0, count, 16):
        part = load(f32x16, weights + 4 * t) * load(f32x16, norms + 4 * t)
        total = split_values(part, factor, planes + t, low, total)
    for t in range(count, depth, 16):
        store(planes + t, zeros(u8x16))
        store(planes + low + t, zeros(u8x16))
    store_f32(factors, scale)
    store_f32(factors + 4, reduce_add(total) * scale * -np.float32(1 << (bits - 1)))
    store_f32(factors + 8, reduce_add(mass))


@inlined
def pair_products(planes, depth, block, first, second, sums, stride):
    """int32 sums [2 block, 32], `stride` bytes between rows, of a block's rows with two units, on
    tile registers that the caller has configured.

    All sums are to be written before any is read, and all codes long before they are multiplied: a
    load right behind a tile's store would wait for it, and so would a tile's load.
    """
    sums_zero()
    if block == 8:
        bytes_add_upper(planes, depth, first, second, depth // 64)
        sums_store_upper(sums, stride)
    else:
        bytes_add(planes, depth, first, second, depth // 64)
        sums_store(sums, stride)


@inlined
def sums_stride(units):
    """Bytes of a row of sums: not a power of two, whose rows would share a cache set."""
    return 64 * ((units + 1) & ~1) + 64


@inlined
def sum_at(high, low):
    """256 high + low as f32x16 from the sums at two addresses, exact however long a page is."""
    a, b = convert(f32x16, load(i32x16, high)), convert(f32x16, load(i32x16, low))
    return fma(a, splat(f32x16, np.float32(256)), b)
