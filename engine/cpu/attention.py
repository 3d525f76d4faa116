"""Causal attention over packed pages, written once for every pair of formats.

Work is cut into items of one KV head and a block of queries (or, for a single query, a stretch of
tokens); each runs over spans of tokens: score the span's key pages, one step of online softmax
(Milakov and Gimelshein 2018), mix its value pages.  The cuts depend on lengths alone, so the result
does not depend on the number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import Verb, call, kernel
from engine.cpu.kv_tokens import width
from engine.cpu.kv_verbs import page_verbs, scratch_nbytes
from engine.cpu.simd import (
    f32x16,
    load,
    load_f32,
    load_i64,
    maximum,
    reduce_add,
    reduce_max,
    splat,
    store,
    store_f32,
    zeros,
)
from engine.cpu.team import Team
from engine.cpu.vmath import vexp, vtanh
from engine.kv.cache import LayerCache, SideCache

# Query rows of an item: enough to pay for unpacking a page, few enough to stay in L2.
QUERY_ROWS = 48
PART = 1024  # tokens of an item when there is a single query
_MASKED = np.float32(-1e30)

# The plan of one call, int64 words: shapes, addresses, then the fields of either side.
_HEADS, _KV_HEADS, _DIM, _TOKENS, _CACHED, _WINDOW, _SPAN, _BLOCK, _PARTS, _PART = range(10)
_QUERIES, _OUT, _FACTORS, _PARTIAL, _PARTIAL_NBYTES, _SCRATCH, _SCRATCH_NBYTES = range(10, 17)
_K, _V, _WORDS = 17, 30, 43
_PAGE, _TABLE, _SEALED, _VERB, _NBYTES, _PARAMETER, _OPEN_VERB, _OPEN_NBYTES, _OPEN_PARAMETER = (
    0, 1, 2, 3, 4, 5, 8, 9, 10,
)  # fmt: skip


@kernel
def _get(plan, field):
    return load_i64(plan + 8 * field)


@kernel
def _run_verb(plan, side, index, head, a, stride, rows, out, scratch):
    """The side's verb on page `index` of KV head `head`, for as many tokens as the page holds."""
    size = _get(plan, side + _PAGE)
    n = min(size, _get(plan, _CACHED) - index * size)
    verb, nbytes, x = side + _VERB, side + _NBYTES, side + _PARAMETER
    if index >= _get(plan, side + _SEALED):
        verb, nbytes, x = side + _OPEN_VERB, side + _OPEN_NBYTES, side + _OPEN_PARAMETER
    page = load_i64(_get(plan, side + _TABLE) + 8 * index) + head * _get(plan, nbytes)
    dim, p, r, s = _get(plan, _DIM), _get(plan, x), _get(plan, x + 1), _get(plan, x + 2)
    call(_get(plan, verb), (page, n, a, stride, rows, dim, out, scratch, p, r, s))


@kernel
def _softmax_row(scores, span, first, last, state, acc, wide, softcap):
    """One online step for a row of `span` scores, of which first..last count; leaves weights.

    `state` is (maximum, sum) so far; the row's `acc` is rescaled to the new maximum.
    """
    if softcap > 0:
        for t in range(0, 4 * span, 64):
            s = load(f32x16, scores + t)
            store(scores + t, vtanh(s * (np.float32(1) / softcap)) * softcap)
    for t in range(first):
        store_f32(scores + 4 * t, _MASKED)
    for t in range(last, span):
        store_f32(scores + 4 * t, _MASKED)
    top = splat(f32x16, load_f32(state))
    for t in range(0, 4 * span, 64):
        top = maximum(top, load(f32x16, scores + t))
    highest = reduce_max(top)
    total = zeros(f32x16)
    for t in range(0, 4 * span, 64):
        weight = vexp(load(f32x16, scores + t) - highest)
        total = total + weight
        store(scores + t, weight)
    shrink = np.float32(math.exp(load_f32(state) - highest))
    store_f32(state, highest)
    store_f32(state + 4, load_f32(state + 4) * shrink + reduce_add(total))
    if shrink != 1:
        for c in range(0, 4 * wide, 64):
            store(acc + c, load(f32x16, acc + c) * shrink)


@kernel
def _clear(target, n):
    """n float32 zeros, n a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store(target + i, zeros(f32x16))


@kernel
def _gather_queries(plan, t0, tokens, head, out):
    """Rows (t, g) of the block's queries, scaled, zeros behind head_dim."""
    heads, dim = _get(plan, _HEADS), _get(plan, _DIM)
    group, wide = heads // _get(plan, _KV_HEADS), width(dim)
    scale = load_f32(_get(plan, _FACTORS))
    for t in range(tokens):
        for g in range(group):
            source = _get(plan, _QUERIES) + 4 * ((t0 + t) * heads + head * group + g) * dim
            row = out + 4 * (t * group + g) * wide
            for d in range(dim):
                store_f32(row + 4 * d, load_f32(source + 4 * d) * scale)
            for d in range(dim, wide):
                store_f32(row + 4 * d, np.float32(0))


@kernel
def _attend_block(plan, head, t0, tokens, start, stop, acc, scratch):
    """Queries t0..t0+tokens of one KV head over the cached tokens start..stop.

    Leaves unnormalized sums float32 [rows, width] at `acc`, then (maximum, sum) per row.
    """
    group = _get(plan, _HEADS) // _get(plan, _KV_HEADS)
    wide, span, rows = width(_get(plan, _DIM)), _get(plan, _SPAN), tokens * group
    window, position = _get(plan, _WINDOW), _get(plan, _CACHED) - _get(plan, _TOKENS) + t0
    softcap = load_f32(_get(plan, _FACTORS) + 4)
    queries = scratch
    scores = queries + 4 * rows * wide
    rest = scores + 4 * rows * span
    states = acc + 4 * rows * wide
    _gather_queries(plan, t0, tokens, head, queries)
    _clear(acc, rows * wide)
    for i in range(rows):
        store_f32(states + 8 * i, _MASKED)
        store_f32(states + 8 * i + 4, np.float32(0))
    for s0 in range(start // span * span, stop, span):
        s1 = min(s0 + span, stop)
        # pages in front of every query's window are skipped: they may have been evicted
        first = s0 if window == 0 else max(s0, position - window + 1)
        size = _get(plan, _K + _PAGE)
        for page in range(first // size, (s1 + size - 1) // size):
            out = scores + 4 * (page * size - s0)
            _run_verb(plan, _K, page, head, queries, 4 * span, rows, out, rest)
        for i in range(rows):
            newest = position + i // group
            oldest = s0 if window == 0 else max(s0, newest - window + 1)
            row, newest = scores + 4 * i * span, min(newest + 1, s1)
            if oldest >= newest:
                _clear(row, span)
                continue
            target = acc + 4 * i * wide
            _softmax_row(row, span, oldest - s0, newest - s0, states + 8 * i, target, wide, softcap)
        size = _get(plan, _V + _PAGE)
        for page in range(first // size, (s1 + size - 1) // size):
            weights = scores + 4 * (page * size - s0)
            _run_verb(plan, _V, page, head, weights, 4 * span, rows, acc, rest)


def _attend_item(plan, item, slot):
    """Item: (KV head, block of queries, part of the tokens); its sums go to its partial."""
    parts, block = _get(plan, _PARTS), _get(plan, _BLOCK)
    tokens, part_tokens = _get(plan, _TOKENS), _get(plan, _PART)
    unit, part = item // parts, item % parts
    blocks = (tokens + block - 1) // block
    t0 = unit % blocks * block
    count = min(block, tokens - t0)
    # the block's last query sees no further than itself
    stop = _get(plan, _CACHED) - tokens + t0 + count
    start = part * part_tokens
    if _get(plan, _WINDOW) != 0:
        start = max(start, stop - count - _get(plan, _WINDOW) + 1)
    if part < parts - 1:
        stop = min(stop, (part + 1) * part_tokens)
    acc = _get(plan, _PARTIAL) + item * _get(plan, _PARTIAL_NBYTES)
    scratch = _get(plan, _SCRATCH) + slot * _get(plan, _SCRATCH_NBYTES)
    _attend_block(plan, unit // blocks, t0, count, start, stop, acc, scratch)


@kernel
def _combine_row(n_parts, stride, states, sums, dim, out):
    """out [dim] = the softmax-weighted mean of one row over its parts, in their order."""
    top = _MASKED
    for p in range(n_parts):
        top = max(top, load_f32(states + p * stride))
    mass = np.float32(0)
    for d in range(dim):
        store_f32(out + 4 * d, np.float32(0))
    for p in range(n_parts):
        factor = np.float32(math.exp(load_f32(states + p * stride) - top))
        mass += load_f32(states + p * stride + 4) * factor
        for d in range(dim):
            value = load_f32(sums + p * stride + 4 * d) * factor
            store_f32(out + 4 * d, load_f32(out + 4 * d) + value)
    for d in range(dim):
        store_f32(out + 4 * d, load_f32(out + 4 * d) / mass)


def _combine_item(plan, unit, slot):
    """Unit: (KV head, block of queries)."""
    heads, dim, tokens = _get(plan, _HEADS), _get(plan, _DIM), _get(plan, _TOKENS)
    group, block, wide = heads // _get(plan, _KV_HEADS), _get(plan, _BLOCK), width(dim)
    parts, stride = _get(plan, _PARTS), _get(plan, _PARTIAL_NBYTES)
    blocks = (tokens + block - 1) // block
    head, t0 = unit // blocks, unit % blocks * block
    rows = min(block, tokens - t0) * group
    base = _get(plan, _PARTIAL) + unit * parts * stride
    for i in range(rows):
        out = _get(plan, _OUT) + 4 * ((t0 + i // group) * heads + head * group + i % group) * dim
        states = base + 4 * rows * wide + 8 * i
        _combine_row(parts, stride, states, base + 4 * i * wide, dim, out)


_ATTEND, _COMBINE = Verb(_attend_item), Verb(_combine_item)


def attend(
    q: np.ndarray, layer: LayerCache, scale: float, softcap: float, team: Team
) -> np.ndarray:
    """softmax(softcap(q k^T scale)) v for q float32 [T, heads, D], the layer's last T tokens."""
    q = np.ascontiguousarray(q)
    tokens, heads, dim = q.shape
    kv_heads, n = layer.k.kv_heads, layer.n
    # whole pages of both sides, or at once all that is cached: odd lengths have a vast multiple
    sizes = layer.k.type.page_tokens, layer.v.type.page_tokens
    span = min(math.lcm(*sizes), max(-(-n // size) * size for size in sizes))
    block = min(tokens, max(1, QUERY_ROWS * kv_heads // heads))
    part = -(-PART // span) * span
    parts = -(-n // part) if tokens == 1 else 1
    rows, wide = block * heads // kv_heads, -(-dim // 32) * 32
    units = kv_heads * -(-tokens // block)
    out = np.empty((tokens, heads, dim), np.float32)
    partial = np.empty((units * parts, rows * (wide + 2)), np.float32)
    needed = 4 * rows * (wide + span) + scratch_nbytes(rows, dim, max(sizes))
    # zeroed: padding that a verb reads but never writes must not be a NaN
    scratch = np.zeros((team.threads, -(-needed // 64) * 64), np.uint8)
    factors = np.array([scale, softcap], np.float32)
    plan = np.empty(_WORDS, np.int64)
    plan[:_K] = (
        heads, kv_heads, dim, tokens, n, layer.window or 0, span, block, parts, part,
        q.ctypes.data, out.ctypes.data, factors.ctypes.data,
        partial.ctypes.data, partial.strides[0], scratch.ctypes.data, scratch.shape[1],
    )  # fmt: skip
    _plan_side(plan, _K, layer.k)
    _plan_side(plan, _V, layer.v)
    team.run(_ATTEND, plan.ctypes.data, units * parts)
    team.run(_COMBINE, plan.ctypes.data, units)
    return out


def _plan_side(plan: np.ndarray, base: int, side: SideCache) -> None:
    kind = side.type
    packed = page_verbs(kind.format, kind.page_tokens, side.head_dim)
    opened = page_verbs(kind.open_format, kind.page_tokens, side.head_dim)
    verb = "score" if side.side == "k" else "mix"
    plan[base : base + _V - _K] = (
        kind.page_tokens, side.table.ctypes.data, len(side.pages),
        getattr(packed, verb), packed.head_nbytes, *packed.parameters,
        getattr(opened, verb), opened.head_nbytes, *opened.parameters,
    )  # fmt: skip
