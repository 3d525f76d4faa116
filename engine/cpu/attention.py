"""Causal attention over packed pages, written once for every pair of formats.

Work is cut into items of one KV head and a block of queries (or, for a single query, a stretch of
tokens); each runs over spans of tokens: score the span's key pages, one step of online softmax
(Milakov and Gimelshein 2018), mix its value pages.  The cuts depend on lengths alone, so the result
does not depend on the number of threads.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba.np.ufunc.parallel import get_thread_id

from engine.cpu.jit import call, kernel, parallel
from engine.cpu.kv_verbs import page_verbs, scratch_nbytes, width
from engine.cpu.simd import (
    address_of,
    f32x16,
    load,
    load_f32,
    maximum,
    reduce_add,
    reduce_max,
    splat,
    store,
    store_f32,
    zeros,
)
from engine.cpu.vmath import vexp, vtanh
from engine.kv.cache import LayerCache, SideCache

QUERY_ROWS = (
    48  # query rows of an item: enough to pay for unpacking a page, few enough to stay in L2
)
PART = 1024  # tokens of an item when there is a single query
_MASKED = np.float32(-1e30)

# Fields of the plan, an int64 array; a side's fields follow its base.
_HEADS, _KV_HEADS, _DIM, _TOKENS, _CACHED, _WINDOW, _SPAN, _BLOCK, _PARTS, _PART = range(10)
_K, _V = 16, 32
_PAGE, _SEALED, _VERB, _NBYTES, _PARAMETER, _OPEN_VERB, _OPEN_NBYTES, _OPEN_PARAMETER = (
    0, 1, 2, 3, 4, 7, 8, 9,
)  # fmt: skip


@kernel
def _run_verb(plan, side, table, index, head, a, stride, rows, out, scratch):
    """The side's verb on page `index` of KV head `head`, for as many tokens as the page holds."""
    size = plan[side + _PAGE]
    n = min(size, plan[_CACHED] - index * size)
    verb, nbytes, x = plan[side + _VERB], plan[side + _NBYTES], side + _PARAMETER
    if index >= plan[side + _SEALED]:
        verb, nbytes, x = plan[side + _OPEN_VERB], plan[side + _OPEN_NBYTES], side + _OPEN_PARAMETER
    page = table[index] + head * nbytes
    dim = plan[_DIM]
    call(
        verb,
        (page, n, a, stride, rows, dim, out, scratch, plan[x], plan[x + 1], plan[x + 2]),
    )


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
def _gather_queries(q, t0, tokens, head, group, scale, out, wide):
    """Rows (t, g) of the block's queries, scaled, zeros behind head_dim."""
    dim = q.shape[2]
    for t in range(tokens):
        for g in range(group):
            row = out + 4 * (t * group + g) * wide
            for d in range(dim):
                store_f32(row + 4 * d, q[t0 + t, head * group + g, d] * scale)
            for d in range(dim, wide):
                store_f32(row + 4 * d, np.float32(0))


@kernel
def _attend_item(plan, tables, q, scale, softcap, head, t0, tokens, start, stop, acc, scratch):
    """Queries t0..t0+tokens of one KV head over the cached tokens start..stop.

    Leaves unnormalized sums float32 [rows, width] at `acc`, then (maximum, sum) per row.
    """
    k_table, v_table = tables
    group = plan[_HEADS] // plan[_KV_HEADS]
    wide, span, rows = width(plan[_DIM]), plan[_SPAN], tokens * group
    window, position = plan[_WINDOW], plan[_CACHED] - plan[_TOKENS] + t0
    queries = scratch
    scores = queries + 4 * rows * wide
    rest = scores + 4 * rows * span
    states = acc + 4 * rows * wide
    _gather_queries(q, t0, tokens, head, group, scale, queries, wide)
    _clear(acc, rows * wide)
    for i in range(rows):
        store_f32(states + 8 * i, _MASKED)
        store_f32(states + 8 * i + 4, np.float32(0))
    for s0 in range(start // span * span, stop, span):
        s1 = min(s0 + span, stop)
        # pages in front of every query's window are skipped: they may have been evicted
        first = s0 if window == 0 else max(s0, position - window + 1)
        size = plan[_K + _PAGE]
        for page in range(first // size, (s1 + size - 1) // size):
            out = scores + 4 * (page * size - s0)
            _run_verb(plan, _K, k_table, page, head, queries, 4 * span, rows, out, rest)
        for i in range(rows):
            newest = position + i // group
            oldest = s0 if window == 0 else max(s0, newest - window + 1)
            row, newest = scores + 4 * i * span, min(newest + 1, s1)
            if oldest >= newest:
                _clear(row, span)
                continue
            target = acc + 4 * i * wide
            _softmax_row(row, span, oldest - s0, newest - s0, states + 8 * i, target, wide, softcap)
        size = plan[_V + _PAGE]
        for page in range(first // size, (s1 + size - 1) // size):
            weights = scores + 4 * (page * size - s0)
            _run_verb(plan, _V, v_table, page, head, weights, 4 * span, rows, acc, rest)


@kernel
def _combine(parts, n_parts, stride, row, rows, wide, dim, out):
    """out [dim] = the softmax-weighted mean of a row over its parts, in order."""
    top = _MASKED
    for p in range(n_parts):
        top = max(top, load_f32(parts + p * stride + 4 * rows * wide + 8 * row))
    mass = np.float32(0)
    for d in range(dim):
        out[d] = np.float32(0)
    for p in range(n_parts):
        base = parts + p * stride
        state = base + 4 * rows * wide + 8 * row
        factor = np.float32(math.exp(load_f32(state) - top))
        mass += load_f32(state + 4) * factor
        for d in range(dim):
            out[d] += load_f32(base + 4 * (row * wide + d)) * factor
    for d in range(dim):
        out[d] /= mass


@parallel
def _attend(plan, k_table, v_table, q, scale, softcap, out, partial, scratch):
    """out [T, heads, D]; `partial` float32 [items, words] and `scratch` uint8 [threads, bytes]."""
    kv_heads, block, parts = plan[_KV_HEADS], plan[_BLOCK], plan[_PARTS]
    tokens = plan[_TOKENS]
    group = plan[_HEADS] // kv_heads
    blocks = (tokens + block - 1) // block
    stride = 4 * partial.shape[1]
    for item in numba.prange(kv_heads * blocks * parts):
        head, b, part = item // parts // blocks, item // parts % blocks, item % parts
        t0 = b * block
        count = min(block, tokens - t0)
        # the block's last query sees no further than itself
        stop = plan[_CACHED] - tokens + t0 + count
        start = part * plan[_PART]
        if plan[_WINDOW] != 0:
            start = max(start, stop - count - plan[_WINDOW] + 1)
        if part < parts - 1:
            stop = min(stop, (part + 1) * plan[_PART])
        mine = address_of(scratch) + get_thread_id() * scratch.shape[1]
        acc = address_of(partial) + item * stride
        _attend_item(
            plan, (k_table, v_table), q, scale, softcap, head, t0, count, start, stop, acc, mine
        )
    wide = width(plan[_DIM])
    for unit in numba.prange(kv_heads * blocks):
        head, b = unit // blocks, unit % blocks
        t0 = b * block
        rows = min(block, tokens - t0) * group
        base = address_of(partial) + unit * parts * stride
        for i in range(rows):
            row = out[t0 + i // group, head * group + i % group]
            _combine(base, parts, stride, i, rows, wide, plan[_DIM], row)


def attend(
    q: np.ndarray, layer: LayerCache, scale: float, softcap: float, threads: int
) -> np.ndarray:
    """softmax(softcap(q k^T scale)) v for q float32 [T, heads, D], the layer's last T tokens."""
    tokens, heads, dim = q.shape
    kv_heads, n = layer.k.kv_heads, layer.n
    # whole pages of both sides, or at once all that is cached: odd lengths have a vast multiple
    sizes = layer.k.type.page_tokens, layer.v.type.page_tokens
    span = min(math.lcm(*sizes), max(-(-n // size) * size for size in sizes))
    block = min(tokens, max(1, QUERY_ROWS * kv_heads // heads))
    part = -(-PART // span) * span
    parts = -(-n // part) if tokens == 1 else 1
    plan = np.zeros(48, np.int64)
    plan[:10] = (
        heads, kv_heads, dim, tokens, n, layer.window or 0, span, block, parts, part,
    )  # fmt: skip
    _plan_side(plan, _K, layer.k)
    _plan_side(plan, _V, layer.v)
    rows, wide = block * heads // kv_heads, -(-dim // 32) * 32
    out = np.empty((tokens, heads, dim), np.float32)
    items = kv_heads * -(-tokens // block) * parts
    partial = np.empty((items, rows * (wide + 2)), np.float32)
    needed = 4 * rows * (wide + span) + scratch_nbytes(rows, dim, max(sizes))
    # zeroed: padding that a verb reads but never writes must not be a NaN
    scratch = np.zeros((threads, -(-needed // 64) * 64), np.uint8)
    _attend(
        plan, layer.k.table, layer.v.table, q, np.float32(scale), np.float32(softcap), out,
        partial, scratch,
    )  # fmt: skip
    return out


def _plan_side(plan: np.ndarray, base: int, side: SideCache) -> None:
    kind = side.type
    packed = page_verbs(kind.format, kind.page_tokens, side.head_dim)
    opened = page_verbs(kind.open_format, kind.page_tokens, side.head_dim)
    verb = "score" if side.side == "k" else "mix"
    plan[base : base + 12] = (
        kind.page_tokens, len(side.pages),
        getattr(packed, verb), packed.head_nbytes, *packed.parameters,
        getattr(opened, verb), opened.head_nbytes, *opened.parameters,
    )  # fmt: skip
