"""Noting what the queries of an open page are worth: see `engine.kv.queries`."""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, field, kernel
from engine.cpu.simd import load_f32, load_i64, store_f32
from engine.cpu.team import Program
from engine.kv.cache import LayerCache
from engine.kv.queries import LARGEST


@kernel
def _mean_squares(q, group, dim, target):
    """Of `group` rows float32 [dim], added up in their order."""
    for d in range(0, 4 * dim, 4):
        total = np.float32(0)
        for g in range(group):
            x = load_f32(q + 4 * g * dim + d)
            total += x * x
        store_f32(target + d, min(total / np.float32(group), LARGEST))


def _note(arguments, t, slot):
    """Item: a token.  Fields: q, tokens, heads, KV heads, D, address of the position, tokens
    behind it, the queries' own included, number of rows, rows."""
    heads, kv_heads, dim = field(arguments, 3), field(arguments, 4), field(arguments, 5)
    cached, size = load_i64(field(arguments, 6)) + field(arguments, 7), field(arguments, 8)
    token = (cached - field(arguments, 2) + t) % size
    for h in range(kv_heads):
        q = field(arguments, 1) + 4 * dim * (t * heads + h * (heads // kv_heads))
        target = field(arguments, 9) + 4 * dim * (token * kv_heads + h)
        _mean_squares(q, heads // kv_heads, dim, target)


_NOTE = Verb(_note)


def note_queries(program: Program, q: np.ndarray, layer: LayerCache) -> None:
    """Fill the rows of q float32 [T, heads, D], the layer's last T tokens, if its keys want them.

    Equal to `QueryPower.write` once it has run.
    """
    side = layer.k
    if side.queries is None:
        return
    tokens, heads, dim = q.shape
    rows, count = side.queries.rows, side.count
    program.hold(rows, count.position)
    program.add(
        _NOTE, tokens,
        q.ctypes.data, tokens, heads, side.kv_heads, dim, count.position.ctypes.data,
        count.pending - side.type.sink, len(rows), rows.ctypes.data,
    )  # fmt: skip
