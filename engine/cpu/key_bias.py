"""The scores that keys lack which are stored without their bias: q . RoPE(bias, t).

A rotated pair with query (u, v) and bias (b1, b2) adds, at the angle a = t theta,

    cos a (u b1 + v b2) + sin a (v b1 - u b2)  =  cos a A + sin a B

so the scores of all tokens are products of [A, B] with the rows of the rotation table, whose rows
are (cos, sin) by pair: the score verb of float32 tokens, on a page that all layers and heads share.
Turning [A, B] by the angle of token s gives scores of tokens s + t from rows t: a few rows, which
stay in the cache, serve all positions.  Channels that do not turn add a constant.

Many rows are multiplied on tile registers, like keys in two bfloat16 parts where the bias is no
longer than keys are.  Few are (qwen2.5-coder-1.5b's first layer has one of 900, most have 4 to 8),
and need three, all that float32 holds: with two an output may be wrong by 5e-4 there.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.amx import ROWS, TILE, both_bf16, sums_add_halves, sums_load, sums_store
from engine.cpu.halves import rounded, store_split
from engine.cpu.jit import call, field, inlined, kernel
from engine.cpu.kv_decode import DECODERS
from engine.cpu.kv_tiles import key_verb
from engine.cpu.kv_tokens import score_verb, width
from engine.cpu.simd import (
    convert,
    f32x16,
    iota,
    load,
    load_f32,
    store,
    store_f32,
    swap_pairs,
    u32x16,
    zeros,
)
from engine.kv.formats import F32
from engine.ops import KeyBias

STRETCH = 128  # tokens scored from one turn of the queries

# Fields, behind those of attention: 0 queries for none.
_QUERIES, _BIAS, _TABLE, _PAIRS, _ADJACENT, _VERB, _PARAMETER = range(7)
_TILES, _ANGLES, _PARTS = 9, 10, 11
FIELDS = 12
_LONG = 48.0  # keys are about as long


def bias_fields(bias: KeyBias | None, tiled: bool) -> tuple[int, ...]:
    """The argument block's fields; what they point to has to be held.  `tiled`: of many rows."""
    if bias is None:
        return (0,) * FIELDS
    pairs = bias.table.shape[1]
    joined = pairs % 16 == 0
    is_long = np.linalg.norm(bias.bias, axis=-1).max() > _LONG
    parameters = DECODERS[F32.name].address, 8 * pairs, 2 * pairs
    return (
        bias.queries.ctypes.data, bias.bias.ctypes.data, bias.table.ctypes.data, pairs,
        bias.layout == "norm", score_verb(joined).address, *parameters,
        key_verb(joined).address if tiled else 0, min(STRETCH, len(bias.table)), 2 + is_long,
    )  # fmt: skip


def bias_nbytes(bias: KeyBias | None, rows: int) -> int:
    """Bytes of an item's buffers, a multiple of 64."""
    if bias is None:
        return 0
    wide = -(-2 * bias.table.shape[1] // 32) * 32
    return 4 * rows * (2 * wide + STRETCH + 16) + (6 * STRETCH + 4 * ROWS) * wide


@inlined
def _pair_products(plan, query, bias, target, scale):
    """[A, B] by pair of one query row, zeros behind them up to the width."""
    pairs, adjacent = field(plan, _PAIRS), field(plan, _ADJACENT) != 0
    first, second = (8, 4) if adjacent else (4, 4 * pairs)  # bytes to the next pair, in a pair
    for i in range(pairs):
        at = first * i
        u, v = load_f32(query + at) * scale, load_f32(query + at + second) * scale
        b1, b2 = load_f32(bias + at), load_f32(bias + at + second)
        store_f32(target + 8 * i, u * b1 + v * b2)
        store_f32(target + 8 * i + 4, v * b1 - u * b2)
    for c in range(8 * pairs, 4 * width(2 * pairs), 4):
        store_f32(target + c, np.float32(0))


@kernel
def gather_bias(plan, first_row, tokens, group, kv_heads, head, dim, scale, buffers):
    """Prepare `tokens` x `group` query rows of KV head `head`, scaled: [A, B], then constants.

    `plan` is the address of the fields, `first_row` the first token's.
    """
    pairs = field(plan, _PAIRS)
    wide = width(2 * pairs)
    bias = field(plan, _BIAS) + 4 * head * dim
    constants = buffers + 4 * tokens * group * 2 * wide
    for i in range(tokens * group):
        row = ((first_row + i // group) * kv_heads + head) * group + i % group
        query = field(plan, _QUERIES) + 4 * row * dim
        _pair_products(plan, query, bias, buffers + 4 * i * wide, scale)
        constant = np.float32(0)
        for c in range(8 * pairs, 4 * dim, 4):
            constant += load_f32(query + c) * scale * load_f32(bias + c)
        store_f32(constants + 4 * i, constant)


@inlined
def _turn(source, angles, target, pairs):
    """(A, B) -> (A cos + B sin, B cos - A sin) by pair; target may hold zeros behind the pairs."""
    odd, even = convert(f32x16, iota(u32x16) & 1), convert(f32x16, iota(u32x16) & 1 ^ 1)
    whole = 2 * pairs & ~15
    for c in range(0, 4 * whole, 64):
        x, angle = load(f32x16, source + c), load(f32x16, angles + c)
        along, across = x * angle, x * swap_pairs(angle)
        store(
            target + c,
            (along + swap_pairs(along)) * even + (across - swap_pairs(across)) * odd,
        )
    for c in range(4 * whole, 8 * pairs, 8):
        a, b = load_f32(source + c), load_f32(source + c + 4)
        cos, sin = load_f32(angles + c), load_f32(angles + c + 4)
        store_f32(target + c, a * cos + b * sin)
        store_f32(target + c + 4, b * cos - a * sin)
    for c in range(8 * pairs, 4 * width(2 * pairs), 4):
        store_f32(target + c, np.float32(0))


@inlined
def _tiles(total, wide, buffers):
    """Addresses of the rotation table's tiles, three parts one after another, and of room for ROWS
    rows of float32."""
    tiles = buffers + 4 * total * (2 * wide + STRETCH + 16)
    return tiles, tiles + 6 * STRETCH * wide


@inlined
def _two_parts(x):
    """f32x16 as far as two bfloat16 hold it, the same whichever way ties are rounded."""
    high = rounded(x)
    return high + rounded(x - high)


@kernel
def prepare_tiles(plan, total, buffers, rest):
    """Make tiles of the table's first rows, for `add_bias_tiles`."""
    pairs, n, table = field(plan, _PAIRS), field(plan, _ANGLES), field(plan, _TABLE)
    verb, wide = field(plan, _TILES), width(2 * pairs)
    tiles, room = _tiles(total, wide, buffers)
    part, apart = 2 * STRETCH * wide, TILE * (wide // 32)
    p, r, s = (
        field(plan, _PARAMETER), field(plan, _PARAMETER + 1), field(plan, _PARAMETER + 2),
    )  # fmt: skip
    for t in range(0, n, ROWS):
        source, count = table + 8 * pairs * t, min(ROWS, n - t)
        target = tiles + 2 * apart * (t // ROWS)
        for third in range(2):
            for i in range(0, 8 * pairs * count, 64):
                at = min(i, 8 * pairs * count - 64)
                x = load(f32x16, source + at)
                store(room + at, x - _two_parts(x) if third else _two_parts(x))
            call(verb, (
                room, count, 2 * pairs, target + 2 * part * third, 0 if third else part, apart,
                rest, p, r, s,
            ))  # fmt: skip


@kernel
def _split_turned(row, wide, third):
    """Turned queries of a row become two bfloat16 parts in their place, and what these leave."""
    for i in range(0, 4 * wide, 128):
        x, y = load(f32x16, row + i), load(f32x16, row + i + 64)
        store_split(_two_parts(x), _two_parts(y), row + i, 64)
        store(third + i, both_bf16(x - _two_parts(x), y - _two_parts(y)))
        store(third + i + 64, zeros(f32x16))


@kernel
def add_bias_tiles(plan, total, first, rows, start, stop, sink, scores, stride, buffers):
    """As `add_bias` for `rows` of the `total` rows, from `first` on, on tile registers: scores of
    ROWS rows, to a multiple of 32 tokens.  What is no row or token becomes anything."""
    pairs, table = field(plan, _PAIRS), field(plan, _TABLE)
    wide, part = width(2 * pairs), 2 * STRETCH * width(2 * pairs)
    steps, turned = wide // 32, buffers + 4 * total * wide
    tiles, third = _tiles(total, wide, buffers)
    constants, buffers = turned + 4 * total * wide + 4 * first, buffers + 4 * first * wide
    for t0 in range(start, stop, STRETCH):
        for i in range(rows):
            row = turned + 4 * i * wide
            _turn(buffers + 4 * i * wide, table + (t0 + sink) * 8 * pairs, row, pairs)
            _split_turned(row, wide, third + 4 * i * wide)
        for t in range(0, min(STRETCH, stop - t0), 32):
            target = scores + 4 * (t0 - start + t)
            sums_load(target, stride)
            for step in range(steps):
                left, right = turned + 128 * step, tiles + TILE * (steps * (t // 16) + step)
                other = right + TILE * steps
                if field(plan, _PARTS) == 2:
                    sums_add_halves(left, 4 * wide, right, other, part)
                else:
                    sums_add_halves(left, 4 * wide, right, other, 0)
                    sums_add_halves(left, 4 * wide, right + part, other + part, part)
                    sums_add_halves(third + 128 * step, 4 * wide, right, other, 0)
            sums_store(target, stride)
    if 2 * pairs == wide:  # most models turn all channels
        return
    for i in range(rows):
        row, constant = scores + i * stride, load_f32(constants + 4 * i)
        for at in range(row, row + 4 * (stop - start), 64):
            store(at, load(f32x16, at) + constant)


@kernel
def add_bias(plan, rows, start, stop, sink, scores, stride, buffers, rest):
    """scores[i, t - start] += the bias's part for tokens start..stop, counted behind `sink`."""
    pairs, table, nbytes = field(plan, _PAIRS), field(plan, _TABLE), 8 * field(plan, _PAIRS)
    p, r, s = (
        field(plan, _PARAMETER), field(plan, _PARAMETER + 1), field(plan, _PARAMETER + 2),
    )  # fmt: skip
    wide = width(2 * pairs)
    turned = buffers + 4 * rows * wide
    constants = turned + 4 * rows * wide
    found = constants + 64 * rows
    for t0 in range(start, stop, STRETCH):
        n = min(STRETCH, stop - t0)
        angles = table + (t0 + sink) * nbytes
        for i in range(rows):
            _turn(buffers + 4 * i * wide, angles, turned + 4 * i * wide, pairs)
        call(
            field(plan, _VERB),
            (table, n, turned, 4 * STRETCH, rows, 2 * pairs, found, rest, p, r, s),
        )
        for i in range(rows):
            constant = load_f32(constants + 4 * i)
            source, target = found + 4 * STRETCH * i, scores + i * stride + 4 * (t0 - start)
            for c in range(0, 4 * n, 64):
                store(target + c, load(f32x16, target + c) + load(f32x16, source + c) + constant)
