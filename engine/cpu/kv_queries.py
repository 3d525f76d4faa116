"""Noting what the queries of an open page are worth: see `engine.kv.queries`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.cpu.jit import Verb, field, kernel
from engine.cpu.kv_tail import addresses
from engine.cpu.program import Program
from engine.cpu.simd import (
    f32x16,
    load,
    load_f32,
    load_i64,
    minimum,
    splat,
    store,
    store_f32,
    zeros,
)
from engine.kv.cache import LayerCache
from engine.kv.queries import LARGEST
from engine.memory import address

SHARE = 16  # tokens of an item


@kernel
def _mean_squares(q, group, dim, target):
    """Of `group` rows float32 [dim], added up in their order."""
    whole = dim & ~15
    for d in range(0, 4 * whole, 64):
        sums = zeros(f32x16)
        for g in range(group):
            squared = load(f32x16, q + 4 * g * dim + d)
            sums = sums + squared * squared
        mean = sums / splat(f32x16, np.float32(group))
        store(target + d, minimum(mean, splat(f32x16, LARGEST)))
    for d in range(4 * whole, 4 * dim, 4):
        total = np.float32(0)
        for g in range(group):
            x = load_f32(q + 4 * g * dim + d)
            total += x * x
        store_f32(target + d, min(total / np.float32(group), LARGEST))


def _note(arguments, item, slot):
    """Item: some tokens.  Fields: q, tokens, heads, KV heads, D, address of the position, tokens
    behind it, the queries' own included, tokens of a page, number of pages, where the addresses of
    their rows stand: page i has those of i modulo their number."""
    heads, kv_heads, dim = field(arguments, 3), field(arguments, 4), field(arguments, 5)
    cached, size = load_i64(field(arguments, 6)) + field(arguments, 7), field(arguments, 8)
    tokens, group = field(arguments, 2), heads // kv_heads
    for t in range(item * SHARE, min(tokens, (item + 1) * SHARE)):
        token = cached - tokens + t
        rows = load_i64(field(arguments, 10) + 8 * (token // size % field(arguments, 9)))
        for h in range(kv_heads):
            q = field(arguments, 1) + 4 * dim * (t * heads + h * group)
            _mean_squares(q, group, dim, rows + 4 * dim * (token % size * kv_heads + h))


_NOTE = Verb(_note)


def note_queries(
    program: Program, q: np.ndarray, layer: LayerCache, pages: Sequence[np.ndarray]
) -> None:
    """Fill the rows of q float32 [T, heads, D], the layer's last T tokens, in `pages` float32
    [P, kv_heads, D], of which page i of the keys has those of i modulo their number.

    Equal to `QueryPower.write` once it has run.
    """
    side, (tokens, heads, dim) = layer.k, q.shape
    program.hold(side.count.position)
    program.add(
        _NOTE, -(-tokens // SHARE),
        address(q), tokens, heads, side.kv_heads, dim, address(side.count.position),
        side.count.pending - side.type.sink, side.type.page_tokens, len(pages),
        addresses(program, pages),
    )  # fmt: skip
