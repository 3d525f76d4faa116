"""A block of query rows as attention starts with it, and as it ends."""

from __future__ import annotations

import numpy as np

from engine.cpu.attention_plan import (
    DIM,
    HEADS,
    KV_HEADS,
    OUT,
    PARTIAL_NBYTES,
    PARTS,
    QUERIES,
)
from engine.cpu.jit import field, kernel
from engine.cpu.kv_tokens import width
from engine.cpu.simd import f32x16, load, load_f32, store, store_f32
from engine.cpu.softmax import MASKED, clear, combine_row


@kernel
def _gather_queries(plan, t0, tokens, head, scale, out):
    """Rows (t, g) of the block's queries times `scale`, zeros behind head_dim."""
    heads, dim = field(plan, HEADS), field(plan, DIM)
    group, wide = heads // field(plan, KV_HEADS), width(dim)
    for t in range(tokens):
        for g in range(group):
            source = field(plan, QUERIES) + 4 * ((t0 + t) * heads + head * group + g) * dim
            row = out + 4 * (t * group + g) * wide
            whole = dim & ~15
            for d in range(0, 4 * whole, 64):
                store(row + d, load(f32x16, source + d) * scale)
            for d in range(4 * whole, 4 * dim, 4):
                store_f32(row + d, load_f32(source + d) * scale)
            for d in range(4 * dim, 4 * wide, 4):
                store_f32(row + d, np.float32(0))


@kernel
def prepare(plan, t0, tokens, head, scale, acc, rows, scratch):
    """Gather a block's queries times `scale`; its sums, of `rows` rows with padding, are zero."""
    wide = width(field(plan, DIM))
    _gather_queries(plan, t0, tokens, head, scale, scratch)
    clear(acc, rows * wide)
    states = acc + 4 * rows * wide
    for i in range(rows):
        store_f32(states + 8 * i, MASKED)
        store_f32(states + 8 * i + 4, np.float32(0))


@kernel
def combine(plan, head, t0, tokens, base, rows):
    """The output of a KV head's queries t0..t0+tokens from its parts, the first at `base`, whose
    states stand behind `rows` rows."""
    heads, dim = field(plan, HEADS), field(plan, DIM)
    group, wide = heads // field(plan, KV_HEADS), width(dim)
    parts, stride = field(plan, PARTS), field(plan, PARTIAL_NBYTES)
    for i in range(tokens * group):
        out = field(plan, OUT) + 4 * ((t0 + i // group) * heads + head * group + i % group) * dim
        states = base + 4 * rows * wide + 8 * i
        combine_row(parts, stride, states, base + 4 * i * wide, dim, out)
