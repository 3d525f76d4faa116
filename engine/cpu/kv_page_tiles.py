"""Tiles of unpacked pages for very many query rows, as two bfloat16 halves (`engine.cpu.kv_tiles`).

Folding ranges into every row costs more than decoding the page once when there are hundreds of
rows.  Codes are bytes in units of 16 lanes (`engine.cpu.kv_integers`), x = (code - center) s + m.
A lane of K is a token, a lane of V a channel, which is how tiles lie: nothing moves between lanes.
"""

from __future__ import annotations

from engine.cpu.amx import TILE, pair_bf16
from engine.cpu.halves import rounded
from engine.cpu.jit import inlined
from engine.cpu.simd import convert, f32x16, fma, load, load_f32, splat, store, u32x16, zeros

TERMS = 3  # products of halves
MANY_ROWS = 64  # from which decoding pays


@inlined
def _byte(word, i):
    return convert(f32x16, (word >> (8 * i)) & 255)


@inlined
def store_halves(x, y, tile, low):
    """A row of a tile, pairs of x and y, and that of its low halves `low` bytes further."""
    store(tile, pair_bf16(x, y))
    store(tile + low, pair_bf16(x - rounded(x), y - rounded(y)))


@inlined
def _key(word, i, channel, s, m, center, norms):
    """The keys of 16 tokens in one channel."""
    step, least = load_f32(s + 4 * channel), load_f32(m + 4 * channel)
    x = fma(_byte(word, i) - center, splat(f32x16, step), splat(f32x16, least))
    return x * norms


@inlined
def key_tiles(unit, lanes, wide, s, m, center, norms, tiles, low):
    """Tiles of the 16 tokens of a unit, times `norms`; s and m float32 [lanes]."""
    for c in range(0, wide, 32):
        both = c + 16 < lanes
        for j in range(0, 16, 4):
            word = load(u32x16, unit + 16 * (c + j))
            other = load(u32x16, unit + 16 * (c + j + 16)) if both else zeros(u32x16)
            for i in range(4):
                x, y = _key(word, i, c + j + i, s, m, center, norms), zeros(f32x16)
                if both:
                    y = _key(other, i, c + j + i + 16, s, m, center, norms)
                store_halves(x, y, tiles + TILE * (c // 32) + 64 * (j + i), low)


@inlined
def clear_tiles(tiles, count, low):
    """Zeros for `count` tiles."""
    for i in range(0, TILE * count, 64):
        store(tiles + i, zeros(f32x16))
        store(tiles + low + i, zeros(f32x16))


@inlined
def scaled(word, i, s, m, center, norm):
    """Token i of a step's four in 16 channels whose s and m are at two addresses."""
    return fma(_byte(word, i) - center, load(f32x16, s), load(f32x16, m)) * norm


@inlined
def channel_tiles(unit, count, s, m, center, norms, tiles, low):
    """Tiles of `count` tokens' 16 channels of a unit; s and m float32 [16], norms [count]."""
    for t in range(0, count, 32):
        for j in range(0, 16, 4):
            word, other = load(u32x16, unit + 16 * (t + j)), load(u32x16, unit + 16 * (t + j + 16))
            for i in range(4):
                at = norms + 4 * (t + j + i)
                first, second = splat(f32x16, load_f32(at)), splat(f32x16, load_f32(at + 64))
                x = scaled(word, i, s, m, center, first)
                y = scaled(other, i, s, m, center, second)
                store_halves(x, y, tiles + TILE * (t // 32) + 64 * (j + i), low)


@inlined
def _value(word, i, token, s, m):
    step, least = splat(f32x16, load_f32(s + 4 * token)), splat(f32x16, load_f32(m + 4 * token))
    return fma(_byte(word, i), step, least)


@inlined
def value_tiles(unit, count, s, m, tiles, low):
    """Tiles of `count` tokens' 16 channels of a unit; s and m float32 [count] by token."""
    for t in range(0, count, 32):
        for j in range(0, 16, 4):
            word, other = load(u32x16, unit + 16 * (t + j)), load(u32x16, unit + 16 * (t + j + 16))
            for i in range(4):
                x, y = _value(word, i, t + j + i, s, m), _value(other, i, t + j + i + 16, s, m)
                store_halves(x, y, tiles + TILE * (t // 32) + 64 * (j + i), low)
