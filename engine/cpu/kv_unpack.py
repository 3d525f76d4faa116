"""Unpacking pages of codes to float rows, bit for bit as their formats' own NumPy decodes them.

    unpack(page, scratch, target, power, n, dim, side, bits, variant, codes_nbytes)

writes the n tokens of a KV head's page as float32 rows [n, dim] to `target`, behind which 16 more
values may be written; `side` is 1 for values.  `variant` is the sum of NORMS and MINIMA that the
page has, kivi's group, or of water-filled pages the sorted channels that share a width.  Unless
`power` is 0, keys of water-filled pages also tell there what their queries weigh, float32 [dim]
(`WaterFilledFormat.power`).  Nothing is fused that NumPy rounds twice.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.gather import scatter
from engine.cpu.jit import Verb, inlined, kernel
from engine.cpu.kv_metadata import linear_values, log_values
from engine.cpu.kv_ranges import MINIMA, NORMS
from engine.cpu.kv_sorted import WIDTHS, parts, sort
from engine.cpu.planes import step_codes
from engine.cpu.simd import (
    convert,
    f32x16,
    i32x16,
    load,
    load_f16,
    load_f32,
    load_i32,
    load_i64,
    load_u8,
    splat,
    store,
    store_f32,
    store_u8,
    store_u32,
    u8x16,
    zeros,
)
from engine.kv.format import KVFormat
from engine.kv.formats.channels import ChannelFormat, padded_dim
from engine.kv.formats.kivi import KiviFormat
from engine.kv.formats.waterfill import WaterFilledFormat


@inlined
def _rooms(scratch, n, lanes):
    """Addresses of a step, codes uint8 [n, lanes], m, s and half the largest code float32
    [3, lanes], n' float32 [n], the channels' numbers int32 [lanes] and how many have each width."""
    step = (scratch + 63) & ~63
    codes = step + 64
    ranges = codes + n * lanes
    norms = ranges + 12 * lanes
    order = norms + 4 * n
    return step, codes, ranges, norms, order, order + 4 * lanes + 64


def scratch_nbytes(tokens: int, head_dim: int) -> int:
    lanes = padded_dim(head_dim)
    return 256 + tokens * (lanes + 4) + 16 * lanes + 8 * WIDTHS


@kernel
def _spread(step, token, channel, side, order, lanes, codes):
    """A step's 64 codes, from `token` and the sorted `channel` on, to uint8 [n, lanes]."""
    for i in range(16):
        for j in range(4):
            t, c = (token + j, channel + i) if side else (token + i, channel + j)
            place = codes + t * lanes + load_i32(order + 4 * c)
            store_u8(place, load_u8(step + 4 * i + j))


@kernel
def _unpack_codes(page, n, lanes, side, bits, step, order, codes):
    """All steps of a page whose codes are of one kind."""
    for lane in range(lanes):
        store_u32(order + 4 * lane, lane)
    across = n // 4 if side else lanes // 4
    for k in range(n * lanes // 64):
        store(step, step_codes(page, k, bits))
        token, channel = (k % across * 4, k // across * 16) if side else (
            k // across * 16, k % across * 4)  # fmt: skip
        _spread(step, token, channel, side, order, lanes, codes)


@kernel
def _unpack_sorted_codes(page, n, lanes, side, counts, step, order, codes):
    """All steps of a water-filled page; channels without codes are zeros."""
    for i in range(0, n * lanes, 16):
        store(codes + i, convert(u8x16, zeros(f32x16)))
    across, k = n // 4 if side else n // 16, 0
    for bits in range(WIDTHS - 1, 0, -1):
        for _ in range(load_i64(counts + 8 * bits) * n // 512):
            for j in range(8):
                store(step, step_codes(page, j, bits))
                at, line = k % across, k // across
                token, channel = (4 * at, 16 * line) if side else (16 * at, 4 * line)
                _spread(step, token, channel, side, order, lanes, codes)
                k += 1
            page += 64 * bits


@kernel
def _write_rows(codes, count, lanes, dim, ranges, norms, target):
    """Rows [count, dim] of codes: n' (m + s (code - half))."""
    for t in range(count):
        norm = splat(f32x16, load_f32(norms + 4 * t))
        for c in range(0, lanes, 16):
            m, s = load(f32x16, ranges + 4 * c), load(f32x16, ranges + 4 * (lanes + c))
            half = load(f32x16, ranges + 4 * (2 * lanes + c))
            code = convert(f32x16, load(u8x16, codes + t * lanes + c))
            store(target + 4 * (t * dim + c), (m + s * (code - half)) * norm)


@kernel
def _load_halves(source, n, target):
    for i in range(n):
        store_f32(target + 4 * i, load_f16(source + 2 * i))


@kernel
def _fill(target, n, value):
    for i in range(n):
        store_f32(target + 4 * i, value)


def _channels(page, scratch, target, power, n, dim, side, bits, variant, codes_nbytes):
    lanes = (dim + 15) & ~15
    step, codes, ranges, norms, order, _ = _rooms(scratch, n, lanes)
    _unpack_codes(page, n, lanes, side, bits, step, order, codes)
    stored = page + codes_nbytes
    if variant & NORMS:
        _load_halves(stored, n, norms)
        stored += 2 * n
    else:
        _fill(norms, n, np.float32(1))
    if variant & MINIMA:
        _load_halves(stored, lanes, ranges)
        _fill(ranges + 8 * lanes, lanes, np.float32(0))
        stored += 2 * lanes
    else:  # m = -0 changes no zero's sign
        _fill(ranges, lanes, np.float32(-0.0))
        _fill(ranges + 8 * lanes, lanes, np.float32((1 << (bits - 1)) - 1))
    _load_halves(stored, lanes, ranges + 4 * lanes)
    _write_rows(codes, n, lanes, dim, ranges, norms, target)


@kernel
def _kivi_values(stored, n, dim, lanes, group, codes, ranges, norms, target):
    """Rows whose m and s are of a token and a group of channels."""
    for t in range(n):
        for c in range(dim):
            at = stored + 2 * (c // group * 2 * n + t)
            store_f32(ranges + 4 * c, load_f16(at))
            store_f32(ranges + 4 * (lanes + c), load_f16(at + 2 * n))
        _write_rows(codes + t * lanes, 1, lanes, dim, ranges, norms, target + 4 * t * dim)


def _kivi(page, scratch, target, power, n, dim, side, bits, group, codes_nbytes):
    lanes = (dim + 15) & ~15
    step, codes, ranges, norms, order, _ = _rooms(scratch, n, lanes)
    _unpack_codes(page, n, lanes, side, bits, step, order, codes)
    _fill(norms, n, np.float32(1))
    _fill(ranges, 3 * lanes, np.float32(0))
    stored = page + codes_nbytes
    if side:
        _kivi_values(stored, n, dim, lanes, group, codes, ranges, norms, target)
        return
    for t in range(0, n, group):
        _load_halves(stored, 2 * lanes, ranges)
        some = min(group, n - t)
        _write_rows(codes + t * lanes, some, lanes, dim, ranges, norms, target + 4 * t * dim)
        stored += 4 * lanes


@kernel
def _tell_power(order, widths_end, lanes, dim, ranges, power):
    """1 / s^2 of the channels that have codes, the first `widths_end` of the sorted ones."""
    _fill(power, dim, np.float32(0))
    for i in range(widths_end):
        channel = load_i32(order + 4 * i)
        s = load_f32(ranges + 4 * (lanes + channel))
        if channel < dim and s > 0:
            store_f32(power + 4 * channel, np.float32(1) / (s * s))


def _water_filled(page, scratch, target, power, n, dim, side, bits, group, codes_nbytes):
    lanes = (dim + 15) & ~15
    step, codes, ranges, norms, order, counts = _rooms(scratch, n, lanes)
    planes, norm_codes, middles, steps, pairs = parts(page, n, lanes, codes_nbytes)
    sort(planes, lanes, order, counts)
    _unpack_sorted_codes(page, n, lanes, side, counts, step, order, codes)
    for c in range(0, lanes, 16):
        places = load(i32x16, order + 4 * c)
        scatter(ranges, places, linear_values(middles + c, pairs + 4))
        scatter(ranges + 4 * lanes, places, log_values(steps + c, pairs + 8))
    i = 0
    for width in range(WIDTHS - 1, -1, -1):
        half = np.float32((1 << width) - 1) * np.float32(0.5)
        for _ in range(load_i64(counts + 8 * width)):
            store_f32(ranges + 8 * lanes + 4 * load_i32(order + 4 * i), half)
            i += 1
    for t in range(0, n, 16):
        store(norms + 4 * t, log_values(norm_codes + t, pairs))
    _write_rows(codes, n, lanes, dim, ranges, norms, target)
    if power != 0:
        _tell_power(order, lanes - load_i64(counts), lanes, dim, ranges, power)


_UNPACK = {
    ChannelFormat: Verb(_channels),
    KiviFormat: Verb(_kivi),
    WaterFilledFormat: Verb(_water_filled),
}


def unpacker(kind: KVFormat) -> Verb | None:
    """The format's `unpack`, if it has one."""
    # a type derived from one of these may decode in its own way
    return _UNPACK.get(type(kind))
