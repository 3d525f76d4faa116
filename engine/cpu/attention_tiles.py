"""Causal attention of many query rows, on tile registers.

Every page becomes tiles once for all rows of an item (`engine.cpu.kv_tiles`), which may come from
several cuts of a chunk: only the pages that not all of them read packed are taken cut by cut.
Blocks of 32 rows take turns: one scores a step's keys, while the one before takes a step of online
softmax and the one before that mixes the step's values, so that scores and weights stay in the
nearest caches.  Queries are split into bfloat16 halves once, weights
as they become known; both lie in their order, left factors of `engine.cpu.amx`.

Products are bfloat16's, x = high + low + 2^-17 x (2^-16 of weights), and sums float32: high high
and low high, and high low where tokens are not exact in one bfloat16.  They run between the rows of
softmax, a product or two at a time, which hides them in part: while one runs, it seems to hold one
of the two ports for wide vectors.
"""

from __future__ import annotations

from engine.cpu.amx import (
    ROWS,
    TILE,
    first_part,
    sums_add_halves,
    sums_load,
    sums_store,
    sums_zero,
    tiles_begin,
    tiles_end,
)
from engine.cpu.attention_plan import (
    BIAS,
    BIAS_NBYTES,
    DIM,
    EXACT,
    FACTORS,
    HEADS,
    KV_HEADS,
    PAGE,
    PARTIAL,
    PARTIAL_NBYTES,
    RECENT,
    SCRATCH,
    SCRATCH_NBYTES,
    SINK,
    SPAN,
    TILE_PARAMETER,
    TILES,
    TOKENS,
    UNIT,
    WINDOW,
    K,
    V,
    cached_tokens,
    page_of,
    page_tokens,
    stored_form,
)
from engine.cpu.attention_rows import combine, prepare
from engine.cpu.halves import store_split
from engine.cpu.jit import Verb, call, field, inlined, kernel
from engine.cpu.key_bias_tiles import prepare_restoring, restore_bias
from engine.cpu.kv_tokens import width
from engine.cpu.kv_verbs import tiles_scratch_nbytes
from engine.cpu.powers import subnormals_return, subnormals_vanish
from engine.cpu.simd import f32x16, load, load_f32, store, zeros
from engine.cpu.softmax import LOG2E, cap, clear
from engine.cpu.softmax_halves import (
    ALWAYS,
    LINE,
    MUCH,
    begin_rows,
    mask,
    settle,
    softmax_halves,
)

STEP = 128  # tokens of a step of softmax


@inlined
def padded_rows(rows):
    """Rows of an item, with room behind any of them for a whole block."""
    return (rows + 2 * ROWS - 1) & -ROWS


def rows_with_room(rows: int) -> int:
    """At least `padded_rows`, for who allocates them."""
    return -(-rows // ROWS) * ROWS + ROWS


def tiles_nbytes(rows: int, dim: int, span: int, page_tokens: int) -> int:
    """Bytes of scratch for `rows` query rows and spans of `span` tokens."""
    padded, tokens, wide = rows_with_room(rows), -(-span // 32) * 32, -(-dim // 32) * 32
    buffers = 4 * padded * wide + 2 * 4 * tokens * wide + 8 * ROWS * STEP + LINE * padded + 128
    return buffers + tiles_scratch_nbytes(dim, page_tokens)


@inlined
def _rooms(plan, room):
    """Addresses of tiles of keys and of values, two blocks' scores, and what is left."""
    wide, tokens = width(field(plan, DIM)), (field(plan, SPAN) + 31) & ~31
    values = room + 4 * tokens * wide
    scores = values + 4 * tokens * wide
    return room, values, scores, scores + 8 * ROWS * STEP


@kernel
def _split_queries(rows, padded, wide, queries):
    """Float32 `queries` [rows, wide] become halves in their place, as weights do
    (`softmax_halves`), and zeros up to `padded` rows."""
    for i in range(0, 4 * rows * wide, 128):
        at = queries + i
        store_split(load(f32x16, at), load(f32x16, at + 64), at, 64)
    for i in range(4 * rows * wide, 4 * padded * wide, 64):
        store(queries + i, zeros(f32x16))


@kernel
def _all_exact(plan, side, first, stop):
    """Whether bfloat16 holds the tokens of pages first..stop exactly."""
    exact = True
    for index in range(first, stop):
        exact &= field(plan, stored_form(plan, side, index) + EXACT) != 0
    return exact


@kernel
def _make_tiles(plan, side, head, s0, first, stop, tiles, low, apart, step, rest):
    """Tiles of the side's pages first..stop, `apart` bytes from one group of 16 lanes to the next
    and `step` per 32 tokens; low halves `low` bytes further, unless that is 0."""
    size, dim = field(plan, side + PAGE), field(plan, DIM)
    for index in range(first, stop):
        form, page = stored_form(plan, side, index), page_of(plan, side, index, head)
        n, x = page_tokens(plan, side, index), form + TILE_PARAMETER
        p, r, s = field(plan, x), field(plan, x + 1), field(plan, x + 2)
        # the sinks' page begins where they do
        target = tiles + max(index * size - s0, 0) // 32 * step
        call(field(plan, form + TILES), (page, n, dim, target, low, apart, rest, p, r, s))


@inlined
def _seen(newest, window, s0, s1):
    """The tokens first..last of a span s0..s1 that a query at `newest` sees, counted from s0."""
    oldest = s0 if window == 0 else max(s0, newest - window + 1)
    return oldest - s0, min(newest + 1, s1) - s0


@kernel
def _block_tokens(i, rows, group, position, window, s0, s1):
    """The tokens of a span that any of ROWS rows from row i on may see, to multiples of 32."""
    if i >= rows:
        return 0, 0
    first, _ = _seen(position + i // group, window, s0, s1)
    _, last = _seen(position + (min(i + ROWS, rows) - 1) // group, window, s0, s1)
    return (first & ~31, (last + 31) & ~31) if first < last else (0, 0)


@inlined
def _soften(j, row):
    """A step of softmax for row j of a block.  Returns the next."""
    (
        i, position, group, window, s0, s1, scores, begin, end, unmasked, lines, acc, wide, softcap,
        much,
    ) = row  # fmt: skip
    at, count = scores + 4 * STEP * j, end - begin
    if softcap > 0:
        cap(at, 0, 4 * count, softcap)
    if not unmasked:
        first, last = _seen(position + (i + j) // group, window, s0, s1)
        if not mask(at, count, first - begin, last - begin):
            return j + 1
    line, target = lines + LINE * (i + j), acc + 4 * (i + j) * wide
    softmax_halves(at, count, line, target, wide, much)
    return j + 1


@inlined
def _meanwhile(done, total, j, limit, row):
    """Softmax of the rows up to `limit` whose turn it is when `done` of `total` products are under
    way.  Returns the next row."""
    while j < limit and total * j < ROWS * done:
        j = _soften(j, row)
    return j


@kernel
def _mix(weights, steps, values, low, apart, acc, wide, total, limit, row):
    """acc [ROWS, wide] += the weights of 32 `steps` tokens by their values, meanwhile softmax of
    other rows.  Returns the next of these."""
    done, j = 0, 0
    for c in range(0, wide if steps > 0 else 0, 32):
        right = values + apart * (c // 16)
        sums_load(acc + 4 * c, 4 * wide)
        for step in range(steps):
            for part in range(first_part(low), 3):
                left = weights + 128 * step
                sums_add_halves(part, left, 4 * STEP, right, right + apart, low)
                done += 1
                j = _meanwhile(done, total, j, limit, row)
            right += TILE
        sums_store(acc + 4 * c, 4 * wide)
    return j


@kernel
def _score(queries, wide, keys, low, first, stop, scores, done, total, j, limit, row):
    """The scores of ROWS rows for the tokens first..stop, meanwhile softmax of other rows from j
    on.  Returns the next of these."""
    steps = wide // 32
    for t in range(first, stop, 32):
        right = keys + TILE * steps * (t // 16)
        sums_zero()
        for step in range(steps):
            for part in range(first_part(low), 3):
                left = queries + 128 * step
                sums_add_halves(part, left, 4 * wide, right, right + TILE * steps, low)
                done += 1
                j = _meanwhile(done, total, j, limit, row)
            right += TILE
        # not before: a store that waits for its products keeps loads waiting whose addresses end
        # in the same 12 bits
        sums_store(scores + 4 * t, 4 * STEP)
    return j


@kernel
def _attend_span(
    plan, head, position, rows, s0, s1, queries, acc, lines, much, bias, room
):  # fmt: skip
    """Rows whose first query is at `position` over the tokens s0..s1; their halves are at
    `queries`, sums float32 [rows, width] at `acc`, their `lines` and what is `much` there as
    `softmax_halves` has it.

    There is room for whole blocks of ROWS, and rows behind the last stay what they are.
    """
    wide, softcap = width(field(plan, DIM)), load_f32(field(plan, FACTORS) + 4) * LOG2E
    group, window = field(plan, HEADS) // field(plan, KV_HEADS), field(plan, WINDOW)
    keys, values, scores, rest = _rooms(plan, room)
    start, _ = _seen(position, window, s0, s1)
    size, v_size = field(plan, K + PAGE), field(plan, V + PAGE)
    first, stop = (s0 + start) // size, (s1 + size - 1) // size
    v_first, v_stop = (s0 + start) // v_size, (s1 + v_size - 1) // v_size
    span = (field(plan, SPAN) + 31) & ~31
    whole = field(plan, BIAS) == 0 and _all_exact(plan, K, first, stop)
    key_low = 0 if whole else 2 * span * wide
    value_low = 0 if _all_exact(plan, V, v_first, v_stop) else 2 * span * wide
    key_apart, apart = TILE * (wide // 32), TILE * (span // 32)
    _make_tiles(
        plan, K, head, s0, first, stop, keys, key_low, key_apart, 2 * key_apart, rest
    )  # fmt: skip
    if field(plan, BIAS) != 0:
        skipped, sink = max(first * size - s0, 0), field(plan, SINK)
        restore_bias(
            plan + 8 * BIAS, s0 + skipped + sink, s1 + sink, field(plan, DIM),
            keys + skipped // 16 * key_apart, key_low, key_apart, bias,
        )  # fmt: skip
    _make_tiles(plan, V, head, s0, v_first, v_stop, values, value_low, apart, TILE, rest)
    tiles_begin(rest)
    subnormals_vanish()
    # two at least: a block's softmax may rescale what its step before is still mixed into
    blocks = max(2, (rows + ROWS - 1) // ROWS)
    turns = (s1 - s0 + STEP - 1) // STEP * blocks
    own, other, before, after, begin, end = scores, scores + 4 * ROWS * STEP, 0, 0, 0, 0
    i, u, last, last_u = 0, 0, 0, 0
    # one turn ahead scores the first block, one behind mixes the last
    for turn in range(-1, turns + 1):
        next_i, next_u = (turn + 1) % blocks * ROWS, (turn + 1) // blocks * STEP
        next_begin, next_end = _block_tokens(
            next_i, rows, group, position, window, s0 + next_u, min(s0 + next_u + STEP, s1)
        )  # fmt: skip
        mixes = (after - before) // 32 * (wide // 32) * (3 - first_part(value_low))
        total = mixes + (next_end - next_begin) // 32 * (wide // 32) * (3 - first_part(key_low))
        limit = min(ROWS, rows - i) if begin < end else 0
        a, b = s0 + u, min(s0 + u + STEP, s1)
        _, seen = _seen(position + i // group, window, a, b)
        seen_from, _ = _seen(position + (i + limit - 1) // group, window, a, b)
        unmasked = seen_from <= begin and seen == end  # for the first row and the last
        row = (
            i, position, group, window, a, b, own + 4 * begin, begin, end, unmasked, lines, acc,
            wide, softcap, much,
        )  # fmt: skip
        j = _mix(
            other + 4 * before, (after - before) // 32, values + TILE * ((last_u + before) // 32),
            value_low, apart, acc + 4 * last * wide, wide, total, limit, row,
        )  # fmt: skip
        j = _score(
            queries + 4 * next_i * wide, wide, keys + next_u // 16 * key_apart, key_low,
            next_begin, next_end, other, mixes, total, j, limit, row,
        )  # fmt: skip
        while j < limit:
            j = _soften(j, row)
        for j in range(limit, ROWS if begin < end else 0):
            clear(own + 4 * begin + 4 * STEP * j, end - begin)
        last, last_u, i, u = i, u, next_i, next_u
        before, after, begin, end, own, other = begin, end, next_begin, next_end, other, own
    subnormals_return()
    tiles_end()


@kernel
def _common_stop(plan):
    """The first token that a page holds which is still open for a cut's queries: what lies in front
    of it looks the same to those of later cuts."""
    stop, unit = cached_tokens(plan), field(plan, UNIT)
    for side in (K, V):
        size = field(plan, side + PAGE)
        stop = min(stop, (cached_tokens(plan) - 1 - field(plan, side + RECENT)) // size * size)
    return max(stop, 0) // unit * unit


@kernel
def _attend_spans(plan, head, position, rows, first, stop, queries, acc, lines, much, bias, room):
    """`_attend_span` for the spans from that of token `first` on in front of `stop`."""
    span, window = field(plan, SPAN), field(plan, WINDOW)
    if window != 0:
        first = max(first, position - window + 1)
    for s0 in range(max(0, first) // span * span, stop, span):
        s1 = min(s0 + span, stop)
        _attend_span(
            plan, head, position, rows, s0, s1, queries, acc, lines, much, bias, room
        )  # fmt: skip


@kernel
def _attend_block(plans, head, t0, tokens, much, acc, scratch):
    """Queries t0..t0+tokens of a chunk, one KV head: `plans` are the argument blocks of its cuts.

    Leaves unnormalized sums float32 [rows, width], padded as `padded_rows` says, at `acc`, then
    (0, sum) per row.  Returns False where a maximum was missed.
    """
    plan = field(plans, 0)
    wide, group = width(field(plan, DIM)), field(plan, HEADS) // field(plan, KV_HEADS)
    rows, sink = tokens * group, field(plan, SINK)
    padded = padded_rows(rows)
    position = cached_tokens(plan) - field(plan, TOKENS) + t0
    bias, states = scratch, acc + 4 * padded * wide
    lines = bias + field(plan, BIAS_NBYTES)
    queries = lines + LINE * padded
    room = queries + 4 * padded * wide
    begin_rows(padded, lines)
    scale = load_f32(field(plan, FACTORS)) * LOG2E
    prepare(plan, t0, tokens, head, scale, acc, padded, queries)
    _split_queries(rows, padded, wide, queries)
    if field(plan, BIAS) != 0:
        prepare_restoring(plan + 8 * BIAS, head, field(plan, DIM), bias)
    begin = 0  # of the first cut that has any of these queries
    while t0 >= begin + field(plan, TOKENS):
        begin += field(plan, TOKENS)
        plans += 8
        plan = field(plans, 0)
    stop, common = position + tokens, _common_stop(plan)
    if sink > 0 and (field(plan, WINDOW) == 0 or position - field(plan, WINDOW) + 1 < 0):
        _attend_span(
            plan, head, position, rows, -sink, min(0, stop), queries, acc, lines, much, bias, room
        )  # fmt: skip
    _attend_spans(
        plan, head, position, rows, 0, min(common, stop), queries, acc, lines, much, bias, room
    )  # fmt: skip
    t = t0
    while t < t0 + tokens:
        plan = field(plans, 0)
        end, row = min(t0 + tokens, begin + field(plan, TOKENS)), (t - t0) * group
        _attend_spans(
            plan, head, position + t - t0, (end - t) * group, common, position + end - t0,
            queries + 4 * row * wide, acc + 4 * row * wide, lines + LINE * row, much, bias, room,
        )  # fmt: skip
        begin += field(plan, TOKENS)
        plans, t = plans + 8, end
    return settle(rows, lines, states)


def _attend_item(arguments, item, slot):
    """Item: a block of a chunk's queries, one KV head; those that see most come first.  Fields:
    the chunk's tokens, those of a block, and the argument blocks of its cuts, in order."""
    tokens, block, plan = field(arguments, 1), field(arguments, 2), field(arguments, 3)
    kv_heads = field(plan, KV_HEADS)
    blocks, head = field(arguments, 0) // kv_heads, item % kv_heads
    t0 = (blocks - 1 - item // kv_heads) * block
    count = min(block, tokens - t0)
    acc = field(plan, PARTIAL) + slot * field(plan, PARTIAL_NBYTES)
    scratch = field(plan, SCRATCH) + slot * field(plan, SCRATCH_NBYTES)
    if not _attend_block(arguments + 24, head, t0, count, MUCH, acc, scratch):
        _attend_block(arguments + 24, head, t0, count, ALWAYS, acc, scratch)
    rows = count * (field(plan, HEADS) // kv_heads)
    combine(plan, head, t0, count, acc, padded_rows(rows))


ATTEND_TILES = Verb(_attend_item)
