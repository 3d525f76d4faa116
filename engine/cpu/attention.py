"""Causal attention over packed pages, written once for every pair of formats.

Work is cut into items of one KV head and a block of queries (or, for a single query, a stretch of
tokens); each runs over spans of tokens: score the span's key pages, one step of online softmax, mix
its value pages.  Who finishes the last part of a head's queries combines them.  The cuts depend on
lengths alone, so the result does not depend on the number of threads.

Tokens are counted from behind the sinks, whose page has index -1 and is a span of its own: its
tokens are -sink..0, and the cuts are those of a cache without sinks.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.atomics import atomic_add, atomic_store
from engine.cpu.attention_plan import (
    BIAS,
    BIAS_NBYTES,
    BLOCK,
    DIM,
    FACTORS,
    FINISHED,
    FIRST,
    HEADS,
    KV_HEADS,
    NBYTES,
    OUT,
    PACKED,
    PAGE,
    PARAMETER,
    PARTIAL,
    PARTIAL_NBYTES,
    PARTS,
    PENDING,
    QUERIES,
    RUNS,
    SCRATCH,
    SCRATCH_NBYTES,
    SINK,
    SLOTS,
    SPAN,
    TABLE,
    TOKENS,
    UNIT,
    UNITS,
    VERB,
    WINDOW,
    K,
    V,
    cached_tokens,
    page_of,
    side_fields,
    stored_form,
)
from engine.cpu.attention_rows import combine, prepare
from engine.cpu.attention_tiles import ATTEND_TILES, rows_with_room, tiles_nbytes
from engine.cpu.host import AMX
from engine.cpu.jit import Verb, call, field, inlined, kernel
from engine.cpu.key_bias import add_bias, bias_fields, bias_nbytes, gather_bias
from engine.cpu.key_bias_tiles import restoring_nbytes
from engine.cpu.kv_floats import fetch
from engine.cpu.kv_stage import Chunk
from engine.cpu.kv_tokens import width
from engine.cpu.kv_verbs import scratch_nbytes
from engine.cpu.memory import Pool
from engine.cpu.program import Program
from engine.cpu.simd import load_f32, store_i64
from engine.cpu.softmax import clear, softmax_row
from engine.kv.cache import LayerCache
from engine.memory import address
from engine.ops import KeyBias

# Query rows of an item at most: enough to pay for unpacking a page, few enough to stay in L2.
QUERY_ROWS = 768
FEW_QUERY_ROWS = 128  # below which items are not cut for the sake of equal shares
MANY_ITEMS = 5  # of a thread, from which shares are equal enough
TILED_ROWS = 16  # from which tiles pay
PART = 1024  # tokens of an item when there is a single query, to within a half


@inlined
def _alike(plan, a, b):
    """Whether pages are stored in the same way."""
    differences = 0
    for i in range(RUNS + 1):
        differences += field(plan, a + i) != field(plan, b + i)
    return differences == 0


@kernel
def _run_end(plan, side, index, stop):
    """Behind the last page below `stop` that one verb takes together with page `index`."""
    stored, end = stored_form(plan, side, index), index + 1
    if field(plan, stored + RUNS) != 0:
        while end < stop and _alike(plan, stored_form(plan, side, end), stored):
            end += 1
    return end


@kernel
def _run_verb(plan, side, index, end, head, a, stride, rows, out, scratch):
    """The side's verb on pages `index` to `end` of KV head `head`, for the tokens they hold."""
    size, stored = field(plan, side + PAGE), stored_form(plan, side, index)
    n = min(end * size, cached_tokens(plan)) - index * size
    if index < 0:
        n = min(field(plan, SINK), cached_tokens(plan) + field(plan, SINK))
    verb, dim, x = field(plan, stored + VERB), field(plan, DIM), stored + PARAMETER
    p, r, s = field(plan, x), field(plan, x + 1), field(plan, x + 2)
    if field(plan, stored + RUNS) != 0:
        cells = field(plan, stored + TABLE) + 8 * index
        offset = head * field(plan, stored + NBYTES)
        call(verb, (cells, offset, size, n, a, stride, rows, dim, out, scratch, p, r, s))
    else:
        page = page_of(plan, side, index, head)
        call(verb, (page, n, a, stride, rows, dim, out, scratch, p, r, s))


@kernel
def _attend_span(plan, head, position, rows, s0, s1, span, beyond, acc, scratch):
    """Rows whose first query is at `position` over the tokens s0..s1; there are `span` weights,
    since value pages may hold tokens that none of these queries sees.

    What is read next is asked for all the time: the page behind that which is scored, a second
    page of values in the softmax, the page but one while values are mixed; `beyond` is read after
    this span.
    """
    group = field(plan, HEADS) // field(plan, KV_HEADS)
    wide, window, stride = width(field(plan, DIM)), field(plan, WINDOW), 4 * field(plan, SPAN)
    softcap = load_f32(field(plan, FACTORS) + 4)
    scores = scratch + 4 * rows * wide
    buffers = scores + rows * stride
    rest = buffers + field(plan, BIAS_NBYTES) + 64
    states = acc + 4 * rows * wide
    # pages in front of every query's window are skipped: they may have been evicted
    first = s0 if window == 0 else max(s0, position - window + 1)
    size, v_size = field(plan, K + PAGE), field(plan, V + PAGE)
    v_first, v_stop = first // v_size, (s1 + v_size - 1) // v_size
    following = page_of(plan, V, v_first, head)
    second = page_of(plan, V, v_first + 1, head) if v_first + 1 < v_stop else beyond
    page, stop = first // size, (s1 + size - 1) // size
    while page < stop:
        # the sinks' page begins where they do
        out = scores + 4 * max(page * size - s0, 0)
        end = _run_end(plan, K, page, stop)
        store_i64(rest - 8, following if end == stop else page_of(plan, K, end, head))
        _run_verb(plan, K, page, end, head, scratch, stride, rows, out, rest)
        page = end
    if field(plan, BIAS) != 0:
        skipped = (first - s0) & ~15
        sink, out = field(plan, SINK), scores + 4 * skipped
        at = plan + 8 * BIAS
        add_bias(at, rows, s0 + skipped, s1, sink, out, stride, buffers, rest)
    nbytes = field(plan, V + PACKED + NBYTES)
    share = (nbytes // 64 + rows - 1) // rows * 64
    for i in range(rows):
        newest = position + i // group
        oldest = s0 if window == 0 else max(s0, newest - window + 1)
        row, newest = scores + i * stride, min(newest + 1, s1)
        if oldest >= newest:
            clear(row, span)
            continue
        state, target, ahead = states + 8 * i, acc + 4 * i * wide, second + i * share
        end = min(ahead + share, second + nbytes)
        oldest, newest = oldest - s0, newest - s0
        softmax_row(row, span, oldest, newest, state, target, wide, softcap, ahead, end)
    page = v_first
    while page < v_stop:
        weights = scores + 4 * max(page * v_size - s0, 0)
        end = _run_end(plan, V, page, v_stop)
        # a run asks for the page but one by itself
        index = max(page + 2, end)
        store_i64(rest - 8, page_of(plan, V, index, head) if index < v_stop else beyond)
        _run_verb(plan, V, page, end, head, weights, stride, rows, acc, rest)
        page = end


@inlined
def _first_page(plan, head, start):
    return page_of(plan, K, max(0, start) // field(plan, K + PAGE), head)


@kernel
def _attend_block(plan, head, t0, tokens, start, stop, beyond, acc, scratch):
    """Queries t0..t0+tokens of one KV head over the cached tokens start..stop; `beyond` is read
    after them.

    Leaves unnormalized sums float32 [rows, width] at `acc`, then (maximum, sum) per row.
    """
    group = field(plan, HEADS) // field(plan, KV_HEADS)
    wide, span, rows = width(field(plan, DIM)), field(plan, SPAN), tokens * group
    position, sink = cached_tokens(plan) - field(plan, TOKENS) + t0, field(plan, SINK)
    scale = load_f32(field(plan, FACTORS))
    prepare(plan, t0, tokens, head, scale, acc, rows, scratch)
    if field(plan, BIAS) != 0:
        heads, dim = field(plan, KV_HEADS), field(plan, DIM)
        at, buffers = plan + 8 * BIAS, scratch + 4 * rows * (wide + span)
        gather_bias(at, t0, tokens, group, heads, head, dim, scale, buffers)
    cached, unit = cached_tokens(plan), field(plan, UNIT)
    if start < 0:  # sinks are wanted
        s1, some = min(0, stop), (sink + 31) & ~31
        _attend_span(plan, head, position, rows, -sink, s1, some, beyond, acc, scratch)
    for s0 in range(max(0, start) // unit * unit, stop, span):
        s1 = min(s0 + span, stop)
        some = min((s1 - s0 + unit - 1) // unit * unit, (cached - s0 + 31) & ~31)
        after = beyond if s1 == stop else page_of(plan, K, s1 // field(plan, K + PAGE), head)
        _attend_span(plan, head, position, rows, s0, s1, some, after, acc, scratch)


@inlined
def _part_start(plan, part):
    whole = part * field(plan, UNITS) // field(plan, PARTS)
    return (field(plan, FIRST) + whole) * field(plan, UNIT)


@kernel
def _cut_item(plan, item):
    """An item's KV head, first token or less, last token + 1."""
    parts, stop = field(plan, PARTS), cached_tokens(plan)
    head, part = item // parts, item % parts
    start = _part_start(plan, part) if part > 0 else -field(plan, SINK)
    if field(plan, WINDOW) != 0:
        start = max(start, stop - field(plan, WINDOW))
    if part < parts - 1:
        stop = min(stop, _part_start(plan, part + 1))
    return head, start, stop


def _attend_item(plan, item, slot):
    """Item: (KV head, part of the tokens) of a single query; its sums go to its partial."""
    head, start, stop = _cut_item(plan, item)
    first, slots, parts = _first_page(plan, head, start), field(plan, SLOTS), field(plan, PARTS)
    if item < slots:  # nobody asked for it
        fetch(first, field(plan, K + PACKED + NBYTES) // 64)
    # threads take items in turn, so this is probably the one that this thread takes next
    likely, beyond = item + slots, first
    if likely < field(plan, 0):
        after, its_start, _ = _cut_item(plan, likely)
        beyond = _first_page(plan, after, its_start)
    acc = field(plan, PARTIAL) + item * field(plan, PARTIAL_NBYTES)
    scratch = field(plan, SCRATCH) + slot * field(plan, SCRATCH_NBYTES)
    _attend_block(plan, head, 0, 1, start, stop, beyond, acc, scratch)
    finished = field(plan, FINISHED) + 8 * head
    if atomic_add(finished, 1) + 1 == parts:
        atomic_store(finished, 0)
        stride = parts * field(plan, PARTIAL_NBYTES)
        group = field(plan, HEADS) // field(plan, KV_HEADS)
        combine(plan, head, 0, 1, field(plan, PARTIAL) + head * stride, group)


def _attend_rows(arguments, item, slot):
    """Item: a block of queries of one KV head, all their tokens.  Fields: a chunk's argument
    blocks, whose items those of the entry are; those that see most come first."""
    at = arguments + 8
    while item >= field(field(at, 0), 0):
        item -= field(field(at, 0), 0)
        at += 8
    plan = field(at, 0)
    tokens, block, kv_heads = field(plan, TOKENS), field(plan, BLOCK), field(plan, KV_HEADS)
    blocks = field(plan, 0) // kv_heads
    t0, head = (blocks - 1 - item // kv_heads) * block, item % kv_heads
    count = min(block, tokens - t0)
    # the block's last query sees no further than itself
    stop, start = cached_tokens(plan) - tokens + t0 + count, -field(plan, SINK)
    if field(plan, WINDOW) != 0:
        start = max(start, stop - count - field(plan, WINDOW) + 1)
    acc = field(plan, PARTIAL) + slot * field(plan, PARTIAL_NBYTES)
    scratch = field(plan, SCRATCH) + slot * field(plan, SCRATCH_NBYTES)
    rows = count * (field(plan, HEADS) // kv_heads)
    first = _first_page(plan, head, start)
    _attend_block(plan, head, t0, count, start, stop, first, acc, scratch)
    combine(plan, head, t0, count, acc, rows)


def _cut(arguments, item, slot):
    """Cut what a single query sees into parts of about PART tokens, as equal as pages allow, as
    many as make an even number of items: two threads then have equally much to do.

    Field: the attention's argument block.
    """
    plan = field(arguments, 1)
    cached, unit, heads = cached_tokens(plan), field(plan, UNIT), field(plan, KV_HEADS)
    first, most, usual = 0, field(plan, SPAN) // unit, max(1, PART // unit)
    if field(plan, WINDOW) != 0:
        first = max(0, cached - field(plan, WINDOW)) // unit
    units = max(1, (cached + unit - 1) // unit - first)
    usual *= 1 + heads % 2
    parts = max(1, (units + usual // 2) // usual) * (1 + heads % 2)
    parts = min(max(parts, (units + most - 1) // most), units)
    store_i64(plan, heads * parts)
    store_i64(plan + 8 * PARTS, parts)
    store_i64(plan + 8 * FIRST, first)
    store_i64(plan + 8 * UNITS, units)


_ATTEND, _ATTEND_ROWS, _CUT = Verb(_attend_item), Verb(_attend_rows), Verb(_cut)


def _block_tokens(tokens: int, heads: int, kv_heads: int, threads: int) -> int:
    """Queries of an item: threads have equally many items, unless there are so many that one more
    does not matter, or they became small."""
    rows = tokens * heads // kv_heads
    fewest = -(-rows // QUERY_ROWS)
    many = fewest * kv_heads >= MANY_ITEMS * threads
    even = 1 if many else threads // math.gcd(threads, kv_heads)
    blocks = min(-(-fewest // even) * even, max(fewest, rows // FEW_QUERY_ROWS))
    return -(-tokens // blocks)


def attend(
    program: Program,
    pool: Pool,
    threads: int,
    q: np.ndarray,
    layer: LayerCache,
    scale: float,
    softcap: float,
    bias: KeyBias | None = None,
    chunk: Chunk | None = None,
) -> np.ndarray:
    """softmax(softcap(q k^T scale)) v for q float32 [T, heads, D], the layer's last T tokens; to
    q k^T is added what `bias` says.  Without a `chunk` all of them read the same packed pages."""
    tokens, heads, dim = q.shape
    kv_heads, out = layer.k.kv_heads, pool.take(q.shape)
    if chunk is None:
        chunk = Chunk((slice(0, tokens),), (address(layer.k.table), address(layer.v.table)))
    # whole pages of both sides, or at once all that fits: odd lengths have a vast multiple
    sizes, sink = (layer.k.type.page_tokens, layer.v.type.page_tokens), layer.k.type.sink
    span = min(math.lcm(*sizes), max(-(-layer.n_ctx // size) * size for size in sizes))
    tiled = AMX and tokens > 1 and tokens * heads // kv_heads >= TILED_ROWS
    most = tokens if tiled else max(cut.stop - cut.start for cut in chunk.cuts)
    block = _block_tokens(most, heads, kv_heads, threads)
    unit, span = span, max(span, PART * 3 // 2 // span * span) if tokens == 1 else span
    rows, wide, row = block * heads // kv_heads, -(-dim // 32) * 32, q.strides[0]
    padded = rows_with_room(rows) if tiled else rows
    parts = 3 + layer.n_ctx // max(unit, PART // unit * unit)
    partial = pool.take((kv_heads * parts if tokens == 1 else threads, padded * (wide + 2)))
    if tiled:
        biased = restoring_nbytes(bias)
        needed = biased + tiles_nbytes(rows, dim, span, max(sizes))
    else:
        biased = bias_nbytes(bias, rows)
        needed = 4 * rows * (wide + span) + biased + 64 + scratch_nbytes(rows, dim, max(sizes))
    scratch = pool.take((threads, -(-needed // 64) * 64), np.uint8)
    factors, finished = np.array([scale, softcap], np.float32), np.zeros(kv_heads, np.int64)
    program.hold(factors, finished, layer.count.position, layer.k.table, layer.v.table)
    program.hold(layer.k.shrunk, layer.v.shrunk)
    sides = (
        *side_fields(layer.k, chunk.tables[0], tiled),
        *side_fields(layer.v, chunk.tables[1], tiled),
    )

    fields = [
        0, heads, kv_heads, dim, 0, address(layer.count.position), 0, layer.window or 0, span,
        block, 1, 1, 0, 0, address(factors), address(partial), partial.strides[0],
        address(scratch), scratch.shape[1], sink, unit, 0, address(finished), threads,
        *sides, *bias_fields(bias, softcap), biased,
    ]  # fmt: skip

    def items(cut: slice) -> int:
        return kv_heads * -(-(cut.stop - cut.start) // block)

    def plan(cut: slice) -> int:
        fields[0], fields[TOKENS] = items(cut), cut.stop - cut.start
        fields[PENDING] = layer.count.pending - tokens + cut.stop - sink
        fields[QUERIES] = address(q) + cut.start * row
        fields[OUT] = address(out) + cut.start * row
        if bias is not None:
            fields[BIAS] = address(bias.queries) + cut.start * bias.queries.strides[0]
        return program.block(*fields)

    plans = [plan(cut) for cut in chunk.cuts]
    if tokens == 1:
        program.add(_CUT, 1, *plans)
        program.append(_ATTEND, plans[0])
    elif tiled:
        program.add(ATTEND_TILES, items(slice(0, tokens)), tokens, block, *plans)
    else:
        program.add(_ATTEND_ROWS, sum(map(items, chunk.cuts)), *reversed(plans))
    return out
