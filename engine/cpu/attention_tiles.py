"""Causal attention of many query rows to a span of pages, on tile registers.

Every page becomes tiles once for all rows (`engine.cpu.kv_tiles`).  Blocks of 32 rows then score
the span, take a step of online softmax and mix its values, so that a block's scores and weights
never leave the first-level cache.  Queries are split into bfloat16 halves once, weights as they
become known; both lie in their order, left factors of `engine.cpu.amx`.

Products are bfloat16's, x = high + low + 2^-17 x, and sums float32: high high and low high, and
high low where tokens are not exact in one bfloat16.
"""

from __future__ import annotations

from engine.cpu.amx import (
    ROWS,
    TILE,
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
from engine.cpu.attention_rows import prepare
from engine.cpu.halves import store_split
from engine.cpu.jit import call, field, inlined, kernel
from engine.cpu.key_bias_tiles import prepare_restoring, restore_bias
from engine.cpu.kv_tokens import width
from engine.cpu.kv_verbs import tiles_scratch_nbytes
from engine.cpu.simd import f32x16, load, load_f32, store, zeros
from engine.cpu.softmax import softmax_halves


def tiles_nbytes(rows: int, dim: int, span: int, page_tokens: int) -> int:
    """Bytes of scratch for `rows` query rows and spans of `span` tokens."""
    padded, tokens, wide = -(-rows // ROWS) * ROWS, -(-span // 32) * 32, -(-dim // 32) * 32
    buffers = 4 * padded * wide + 2 * 4 * tokens * wide + 8 * ROWS * tokens + 128
    return buffers + tiles_scratch_nbytes(dim, page_tokens)


@inlined
def _rooms(plan, rows, scratch):
    """Addresses of the rows' halves, tiles of keys and of values, two blocks' scores, and what is
    left."""
    wide, tokens = width(field(plan, DIM)), (field(plan, SPAN) + 31) & ~31
    keys = (scratch + 4 * ((rows + ROWS - 1) & -ROWS) * wide + 63) & ~63
    values = keys + 4 * tokens * wide
    scores = values + 4 * tokens * wide
    return scratch, keys, values, scores, scores + 8 * ROWS * tokens


@kernel
def _split_queries(rows, wide, queries):
    """Float32 `queries` [rows, wide] become halves in their place, as weights do
    (`softmax_halves`), and zeros up to a multiple of ROWS rows."""
    for i in range(0, 4 * rows * wide, 128):
        at = queries + i
        store_split(load(f32x16, at), load(f32x16, at + 64), at, 64)
    for i in range(4 * rows * wide, 4 * ((rows + ROWS - 1) & -ROWS) * wide, 64):
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
def _finish(address, stride):
    """Store sums that are due at `address`, if any are."""
    if address != 0:
        sums_store(address, stride)


@kernel
def _score(k, due, due_stride, queries, wide, keys, low, first, scores, stride):
    """Step k of the scores of ROWS rows for the tokens from `first` on: 32 channels of 32 tokens,
    which take wide / 32 steps.  Returns where sums are due.

    Sums are stored when others begin: a store that waits for its products keeps loads waiting
    whose addresses end in the same 12 bits.
    """
    steps = wide // 32
    t, step = first + 32 * (k // steps), k % steps
    if step == 0:
        _finish(due, due_stride)
        sums_zero()
    right = keys + TILE * (steps * (t // 16) + step)
    sums_add_halves(queries + 128 * step, 4 * wide, right, right + TILE * steps, low)
    return scores + 4 * t


@kernel
def _mix(k, due, due_stride, weights, stride, first, steps, values, low, apart, acc, wide):
    """Step k of acc [ROWS, wide] += the weights of 32 `steps` tokens from `first` on by their
    values: 32 tokens of 32 channels, which take `steps` steps.  Returns where sums are due."""
    c, step = 32 * (k // steps), k % steps
    if step == 0:
        _finish(due, due_stride)
        sums_load(acc + 4 * c, 4 * wide)
    right = values + apart * (c // 16) + TILE * (first // 32 + step)
    sums_add_halves(weights + 4 * first + 128 * step, stride, right, right + apart, low)
    return acc + 4 * c


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


@kernel
def _attend_span(plan, head, position, rows, s0, s1, acc, buffers, scratch):
    """Rows whose first query is at `position` over the tokens s0..s1; their halves are at
    `scratch`, sums float32 [rows, width], padded to ROWS, at `acc`, then (maximum, sum) per row."""
    wide, softcap = width(field(plan, DIM)), load_f32(field(plan, FACTORS) + 4)
    group, window = field(plan, HEADS) // field(plan, KV_HEADS), field(plan, WINDOW)
    queries, keys, values, scores, rest = _rooms(plan, rows, scratch)
    stride, states = 4 * ((s1 - s0 + 31) & ~31), acc + 4 * wide * ((rows + ROWS - 1) & -ROWS)
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
            keys + skipped // 16 * key_apart, key_low, key_apart, buffers,
        )  # fmt: skip
    _make_tiles(plan, V, head, s0, v_first, v_stop, values, value_low, apart, TILE, rest)
    tiles_begin(rest)
    own, other, mixes = scores, scores + ROWS * stride, 0
    begin, end, before, after = 0, 0, 0, 0
    # one round ahead scores the first block, one behind mixes the last
    for i in range(-ROWS, (rows + ROWS - 1 & -ROWS) + ROWS, ROWS):
        next_begin, next_end = _block_tokens(i + ROWS, rows, group, position, window, s0, s1)
        work = mixes + (next_end - next_begin) // 32 * (wide // 32)
        done, due, due_stride = 0, 0, 0
        token, g = position + i // group, i % group
        at, target = queries + 4 * (i + ROWS) * wide, acc + 4 * (i - ROWS) * wide
        for j in range(ROWS):
            # meanwhile the tile registers mix the block before and score the one behind
            while ROWS * done < work * (j + 1):
                if done < mixes:
                    steps = (after - before) // 32
                    due = _mix(
                        done, due, due_stride, other, stride, before, steps, values, value_low,
                        apart, target, wide,
                    )  # fmt: skip
                    due_stride = 4 * wide
                else:
                    due = _score(
                        done - mixes, due, due_stride, at, wide, keys, key_low, next_begin, other,
                        stride,
                    )  # fmt: skip
                    due_stride = stride
                done += 1
            if begin < end and i + j < rows:
                row, sums = own + j * stride + 4 * begin, acc + 4 * (i + j) * wide
                first, last = _seen(token, window, s0, s1)
                softmax_halves(
                    row, end - begin, first - begin, last - begin, states + 8 * (i + j), sums,
                    wide, softcap,
                )  # fmt: skip
                g += 1
                if g == group:
                    g, token = 0, token + 1
        _finish(due, due_stride)
        mixes = (end - begin) // 32 * (wide // 32)
        before, after, begin, end, own, other = begin, end, next_begin, next_end, other, own
    tiles_end()


@kernel
def attend_tiles(plan, head, t0, tokens, start, stop, acc, scratch):
    """As `engine.cpu.attention._attend_block`, rows being padded to a multiple of ROWS."""
    rows = tokens * (field(plan, HEADS) // field(plan, KV_HEADS))
    padded = (rows + ROWS - 1) & -ROWS
    position, span, unit = (
        cached_tokens(plan) - field(plan, TOKENS) + t0,
        field(plan, SPAN),
        field(plan, UNIT),
    )
    buffers = scratch
    scratch = buffers + field(plan, BIAS_NBYTES)
    prepare(plan, t0, tokens, head, acc, padded, scratch)
    _split_queries(rows, width(field(plan, DIM)), scratch)
    if field(plan, BIAS) != 0:
        prepare_restoring(plan + 8 * BIAS, head, field(plan, DIM), buffers)
    if start < 0:  # sinks are wanted
        _attend_span(
            plan, head, position, rows, -field(plan, SINK), min(0, stop), acc, buffers, scratch
        )
    for s0 in range(max(0, start) // unit * unit, stop, span):
        s1 = min(s0 + span, stop)
        _attend_span(plan, head, position, rows, s0, s1, acc, buffers, scratch)
