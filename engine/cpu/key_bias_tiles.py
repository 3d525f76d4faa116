"""Keys that are stored without their bias get it back as they become tiles (`engine.cpu.kv_tiles`).

A page becomes tiles once for hundreds of query rows, so whole keys, in two bfloat16 halves as
others are, cost next to nothing, where the bias's own product with every row would be as large as
that of the keys.  RoPE(bias, s + t) is RoPE(RoPE(bias, s), t): the bias is turned once for 16
tokens, whose own angles stay in the cache, lanes being tokens as in tiles.

Biases may be a hundred times as long as keys (900 in qwen2.5-coder-1.5b's first layer), which two
halves would round by too much, but what is long hardly turns in all of the context: its part at
position 0 is left out of every key.  That takes the same from all scores of a row, which softmax
does not see, unless scores are capped.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.hadamard import butterflies
from engine.cpu.halves import store_pairs
from engine.cpu.jit import field, inlined, kernel
from engine.cpu.key_bias import ADJACENT, BIAS, HADAMARD, PAIRS, ROWS, SLOW, TABLE, turn_pairs
from engine.cpu.kv_tokens import width
from engine.cpu.simd import bitcast, f32x16, fma, load, load_f32, splat, store, store_f32, u32x16
from engine.ops import KeyBias

_TOKENS = 16  # turned together: a tile's lanes


def restoring_nbytes(bias: KeyBias | None) -> int:
    """Bytes of the room for `prepare_restoring` and `restore_bias`, a multiple of 64."""
    if bias is None:
        return 0
    wide = -(-bias.bias.shape[1] // 32) * 32
    return 128 * bias.table.shape[1] + 4 * wide * (2 + _TOKENS)


@inlined
def _rooms(room, pairs, wide):
    """Addresses of (cos, sin) [pairs, 2, 16], the bias as `turn_pairs` takes it, the same turned,
    and the bias of 16 tokens [wide, 16]."""
    own = room + 128 * pairs
    return room, own, own + 4 * wide, own + 8 * wide


@inlined
def _channels(adjacent, pairs, i):
    """The two channels of pair i."""
    return (2 * i, 2 * i + 1) if adjacent else (i, i + pairs)


@kernel
def prepare_restoring(plan, head, dim, room):
    """Gather the angles of 16 tokens and the bias of KV head `head`; `plan` as in
    `engine.cpu.key_bias`."""
    pairs, table, rows = field(plan, PAIRS), field(plan, TABLE), field(plan, ROWS)
    adjacent, bias = field(plan, ADJACENT) != 0, field(plan, BIAS) + 4 * head * dim
    factor = np.float32(1 / math.sqrt(field(plan, HADAMARD)))
    angles, own, _, _ = _rooms(room, pairs, width(dim))
    for i in range(pairs):
        first, second = _channels(adjacent, pairs, i)
        # turning (b2, b1) back by an angle turns (b1, b2) by it
        store_f32(own + 8 * i, load_f32(bias + 4 * second) * factor)
        store_f32(own + 8 * i + 4, load_f32(bias + 4 * first) * factor)
        for t in range(_TOKENS):
            source = table + 8 * (min(t, rows - 1) * pairs + i)
            store_f32(angles + 128 * i + 4 * t, load_f32(source))
            store_f32(angles + 128 * i + 64 + 4 * t, load_f32(source + 4))
    for c in range(8 * pairs, 4 * dim, 4):  # they do not turn
        store_f32(own + c, load_f32(bias + c) * factor)


@inlined
def _spread(turned, own, angles, adjacent, pairs, slow, dim, rows):
    """The bias of 16 tokens from that of the first, without what pairs from `slow` on have at
    position 0."""
    for i in range(pairs):
        x = splat(f32x16, load_f32(turned + 8 * i + 4))
        y = splat(f32x16, load_f32(turned + 8 * i))
        cos, sin = load(f32x16, angles + 128 * i), load(f32x16, angles + 128 * i + 64)
        first, second = _channels(adjacent, pairs, i)
        u, v = x * cos - y * sin, fma(x, sin, y * cos)
        if i >= slow:
            u, v = u - load_f32(own + 8 * i + 4), v - load_f32(own + 8 * i)
        store(rows + 64 * first, u)
        store(rows + 64 * second, v)
    for c in range(2 * pairs, dim):
        left = load_f32(own + 4 * c) if slow > pairs else np.float32(0)
        store(rows + 64 * c, splat(f32x16, left))


@inlined
def _even(words):
    return bitcast(f32x16, words << 16)


@inlined
def _odd(words):
    return bitcast(f32x16, words & np.uint32(0xFFFF0000))


@inlined
def _add(rows, dim, tiles, low):
    """Tiles of 16 tokens += rows."""
    for c in range(0, dim, 2):
        at = tiles + 32 * c
        high, rest = load(u32x16, at), load(u32x16, at + low)
        x = load(f32x16, rows + 64 * c) + (_even(high) + _even(rest))
        y = load(f32x16, rows + 64 * c + 64) + (_odd(high) + _odd(rest))
        store_pairs(x, y, at, low)


@kernel
def restore_bias(plan, first, stop, dim, tiles, low, apart, room):
    """Add the bias of positions first..stop to keys whose `tiles` have low halves `low` bytes
    further and are `apart` bytes from one group of 16 tokens to the next."""
    pairs, table, block = field(plan, PAIRS), field(plan, TABLE), field(plan, HADAMARD)
    slow = field(plan, SLOW)
    angles, own, turned, rows = _rooms(room, pairs, width(dim))
    for t in range(first, stop, _TOKENS):
        turn_pairs(own, table + 8 * pairs * t, turned, pairs)
        _spread(turned, own, angles, field(plan, ADJACENT) != 0, pairs, slow, dim, rows)
        if block > 1:
            butterflies(rows, 64 * dim, 64 * block)
        _add(rows, dim, tiles, low)
        tiles += apart
