"""The scores that keys lack which are stored without their bias: q . RoPE(bias, t).

Few query rows add them.  A rotated pair with query (u, v) and bias (b1, b2) adds, at the angle
a = t theta,

    cos a (u b1 + v b2) + sin a (v b1 - u b2)  =  cos a A + sin a B

so the scores of all tokens are products of [A, B] with the rows of the rotation table, whose rows
are (cos, sin) by pair: the score verb of float32 tokens, on a page that all layers and heads share.
Turning [A, B] by the angle of token s gives scores of tokens s + t from rows t: a few rows, which
stay in the cache, serve all positions.  Channels that do not turn add a constant.

For many rows keys get their bias back as they become tiles (`engine.cpu.key_bias_tiles`).
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import call, field, inlined, kernel
from engine.cpu.kv_decode import DECODERS
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
)
from engine.kv.formats import F32
from engine.kv.modifiers import hadamard_block
from engine.memory import address
from engine.ops import KeyBias

STRETCH = 128  # tokens scored from one turn of the queries

# Fields, behind those of attention: 0 queries for none.
_QUERIES, BIAS, TABLE, PAIRS, ADJACENT, _VERB, _PARAMETER = range(7)
HADAMARD, ROWS, SLOW = 9, 10, 11
FIELDS = 12


def bias_fields(bias: KeyBias | None, softcap: float) -> tuple[int, ...]:
    """The argument block's fields; what they point to has to be held."""
    if bias is None:
        return (0,) * FIELDS
    pairs = bias.table.shape[1]
    parameters = DECODERS[F32.name].address, 8 * pairs, 2 * pairs
    return (
        address(bias.queries), address(bias.bias), address(bias.table), pairs,
        bias.layout == "norm", score_verb(pairs % 16 == 0).address, *parameters,
        hadamard_block(bias.bias.shape[1]) if bias.rotated else 1, len(bias.table),
        bias.bias.shape[1] if softcap else _first_slow(bias.table),
    )  # fmt: skip


def _first_slow(table: np.ndarray) -> int:
    """The first pair that turns by less than a radian from the first position to the last."""
    if len(table) < 2:
        return 0
    angles = np.arctan2(table[1, :, 1], table[1, :, 0])
    return int(np.count_nonzero(np.abs(angles) * (len(table) - 1) >= 1))


def bias_nbytes(bias: KeyBias | None, rows: int) -> int:
    """Bytes of buffers for `rows` query rows, a multiple of 64."""
    if bias is None:
        return 0
    wide = -(-2 * bias.table.shape[1] // 32) * 32
    return 4 * rows * (2 * wide + STRETCH + 16)


@inlined
def _pair_products(plan, query, bias, target, scale):
    """[A, B] by pair of one query row, zeros behind them up to the width."""
    pairs, adjacent = field(plan, PAIRS), field(plan, ADJACENT) != 0
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
    pairs = field(plan, PAIRS)
    wide = width(2 * pairs)
    bias = field(plan, BIAS) + 4 * head * dim
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
def turn_pairs(source, angles, target, pairs):
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


@kernel
def add_bias(plan, rows, start, stop, sink, scores, stride, buffers, rest):
    """scores[i, t - start] += the bias's part for tokens start..stop, counted behind `sink`."""
    pairs, table, nbytes = field(plan, PAIRS), field(plan, TABLE), 8 * field(plan, PAIRS)
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
            turn_pairs(buffers + 4 * i * wide, angles, turned + 4 * i * wide, pairs)
        call(
            field(plan, _VERB),
            (table, n, turned, 4 * STRETCH, rows, 2 * pairs, found, rest, p, r, s),
        )
        for i in range(rows):
            constant = load_f32(constants + 4 * i)
            source, target = found + 4 * STRETCH * i, scores + i * stride + 4 * (t0 - start)
            for c in range(0, 4 * n, 64):
                store(target + c, load(f32x16, target + c) + load(f32x16, source + c) + constant)
