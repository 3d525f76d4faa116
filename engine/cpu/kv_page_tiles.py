"""What tiles of pages of codes have in common (`engine.cpu.kv_tiles`).

Folding ranges into every row costs more than decoding the page once when there are many rows.
Codes are bytes in units of 16 lanes (`engine.cpu.kv_integers`), x = (code - center) s + m.  A lane
of K is a token, a lane of V a channel, which is how tiles lie: nothing moves between lanes.
"""

from __future__ import annotations

from engine.cpu.amx import TILE
from engine.cpu.halves import store_pairs
from engine.cpu.jit import inlined
from engine.cpu.simd import convert, f32x16, fma, load, load_f32, splat, store, u32x16, zeros


@inlined
def byte(word, i):
    return convert(f32x16, (word >> (8 * i)) & 255)


@inlined
def clear_tiles(tiles, low, count):
    """Zeros for `count` tiles."""
    for i in range(0, TILE * count, 64):
        store(tiles + i, zeros(f32x16))
        if low != 0:
            store(tiles + low + i, zeros(f32x16))


@inlined
def clear_half(tile, low):
    """Zeros for half a tile."""
    for i in range(0, TILE // 2, 64):
        store(tile + i, zeros(f32x16))
        if low != 0:
            store(tile + low + i, zeros(f32x16))


@inlined
def key(word, i, channel, s, m, center, norms):
    """The keys of 16 tokens in one channel."""
    step, least = load_f32(s + 4 * channel), load_f32(m + 4 * channel)
    x = fma(byte(word, i) - center, splat(f32x16, step), splat(f32x16, least))
    return x * norms


@inlined
def key_tiles(unit, lanes, wide, s, m, center, norms, tiles, low):
    """Tiles of the 16 tokens of a unit, times `norms`; s and m float32 [lanes]."""
    for c in range(0, lanes, 4):
        word = load(u32x16, unit + 16 * c)
        for i in range(0, 4, 2):
            x = key(word, i, c + i, s, m, center, norms)
            y = key(word, i + 1, c + i + 1, s, m, center, norms)
            store_pairs(x, y, tiles + 32 * (c + i), low)
    if lanes < wide:
        clear_half(tiles + 32 * lanes, low)


@inlined
def _scaled(word, i, s, m, center, norm):
    """Token i of a step's four in 16 channels whose s and m are at two addresses."""
    x = fma(byte(word, i) - center, load(f32x16, s), load(f32x16, m))
    return x * splat(f32x16, load_f32(norm))


@inlined
def channel_rows(word, s, m, center, norms, rows, low):
    """Two rows of a tile: four tokens' 16 channels; s and m float32 [16], norms [4]."""
    for i in range(0, 4, 2):
        x = _scaled(word, i, s, m, center, norms + 4 * i)
        y = _scaled(word, i + 1, s, m, center, norms + 4 * i + 4)
        store_pairs(x, y, rows + 32 * i, low)


@inlined
def channel_tiles(unit, count, s, m, center, norms, tiles, low):
    """Tiles of `count` tokens' 16 channels of a unit; s and m float32 [16], norms [count]."""
    for t in range(0, count, 4):
        word = load(u32x16, unit + 16 * t)
        channel_rows(word, s, m, center, norms + 4 * t, tiles + 32 * t, low)


@inlined
def _value(word, i, s, m):
    step, least = splat(f32x16, load_f32(s + 4 * i)), splat(f32x16, load_f32(m + 4 * i))
    return fma(byte(word, i), step, least)


@inlined
def value_rows(word, s, m, rows, low):
    """Two rows of a tile: four tokens' 16 channels; s and m float32 [4] by token."""
    for i in range(0, 4, 2):
        store_pairs(_value(word, i, s, m), _value(word, i + 1, s, m), rows + 32 * i, low)


@inlined
def value_tiles(unit, count, s, m, tiles, low):
    """Tiles of `count` tokens' 16 channels of a unit; s and m float32 [count] by token."""
    for t in range(0, count, 4):
        value_rows(load(u32x16, unit + 16 * t), s + 4 * t, m + 4 * t, tiles + 32 * t, low)
