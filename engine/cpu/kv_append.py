"""New tokens: rows of float32 are checked and encoded where their pages are open."""

from __future__ import annotations

import numpy as np

from engine.cpu.atomics import atomic_min
from engine.cpu.jit import Verb, call, field, kernel
from engine.cpu.kv_encode import ENCODERS
from engine.cpu.kv_hqq import HQQ_ROWS
from engine.cpu.memory import Pool
from engine.cpu.program import Program
from engine.cpu.simd import load_f32, load_i64, store_f32
from engine.kv.cache import SideCache
from engine.memory import address


@kernel
def _within(x, dim, limit):
    """Whether all magnitudes are at most `limit`; no comparison holds for a NaN."""
    good = True
    for d in range(dim):
        good &= abs(load_f32(x + 4 * d)) <= limit
    return good


def _encode_rows(encoder, source, apart, target, row_nbytes, n, count):
    """Encode `count` rows of n values, `apart` bytes from one to the next."""
    for i in range(count):
        call(encoder, (source + i * apart, target + i * row_nbytes, n))


_ENCODE_ROWS = Verb(_encode_rows)
SHARE = 16  # tokens of an item


@kernel
def _pad(source, apart, dim, target, padded, count):
    """Rows of `dim` values, `apart` bytes from one to the next, with zeros up to `padded`."""
    for i in range(count):
        for d in range(dim):
            store_f32(target + 4 * (i * padded + d), load_f32(source + i * apart + 4 * d))
        for d in range(dim, padded):
            store_f32(target + 4 * (i * padded + d), np.float32(0))


def _append(arguments, item, slot):
    """Item: some tokens.  Fields: encoder, x, tokens, heads, D, page tokens, bytes of a page per
    head, of a row, page table, address of the first position, tokens behind it, channels with
    padding, scratch of SHARE rows per thread, address of the limit, of the first bad token, what
    stands for position 0 there, tokens in front of the first page, what encodes many rows."""
    heads, dim, size = field(arguments, 4), field(arguments, 5), field(arguments, 6)
    row_nbytes, padded = field(arguments, 8), field(arguments, 12)
    room, apart = field(arguments, 13) + 4 * SHARE * padded * slot, 4 * heads * dim
    limit, bad = load_f32(field(arguments, 14)), field(arguments, 15)
    start = load_i64(field(arguments, 10)) + field(arguments, 11)
    t, stop = item * SHARE, min(field(arguments, 3), (item + 1) * SHARE)
    while t < stop:
        paged = start + t - field(arguments, 17)
        count = min(stop - t, size - paged % size)
        page = load_i64(field(arguments, 9) + 8 * (paged // size))
        for h in range(heads):
            source = field(arguments, 2) + apart * t + 4 * dim * h
            for i in range(count):
                if not _within(source + i * apart, dim, limit):
                    atomic_min(bad, field(arguments, 16) + start + t + i)
            step = apart
            if padded != dim:
                _pad(source, apart, dim, room, padded, count)
                source, step = room, 4 * padded
            target = page + h * field(arguments, 7) + paged % size * row_nbytes
            rows = field(arguments, 1), source, step, target, row_nbytes, padded, count
            call(field(arguments, 18), rows)
        t += count


_APPEND = Verb(_append)
NONE_BAD = 1 << 62
NEXT = 1 << 40  # more than there are positions


def append(
    program: Program,
    pool: Pool,
    threads: int,
    side: SideCache,
    x: np.ndarray,
    bad: np.ndarray,
    number: int,
    open_table: int | None = None,
) -> None:
    """Encode x [T, kv_heads, D] into the pages behind the tokens that the side already holds, whose
    addresses stand in its table or at `open_table`.

    If a token cannot be stored, `bad` int64 [1], first NONE_BAD, becomes `number` NEXT + the least
    such token's position, unless it is less already.
    """
    kind, dim = side.type, side.head_dim
    # the tokens are all sinks or none is
    stored, size, before = kind.open_format, kind.page_tokens, kind.sink
    table = address(side.table) if open_table is None else open_table
    most = kind.limit
    if side.in_sink:
        stored, size, before = kind.sink_format, kind.sink, 0
        table = address(side.sink_table)
        most = stored.limit
    tokens, heads, _ = x.shape
    padded = -(-dim // stored.block) * stored.block
    scratch = pool.take((threads, SHARE * padded))
    limit = np.array([most], np.float32)
    program.hold(limit, bad, side.table, side.count.position)
    program.add(
        _APPEND, -(-tokens // SHARE),
        ENCODERS[stored.name].address, address(x), tokens, heads, dim, size,
        stored.page_nbytes(size, dim), stored.row_nbytes(dim),
        table, address(side.count.position), side.count.pending, padded,
        address(scratch), address(limit), address(bad), number * NEXT, before,
        HQQ_ROWS.get(stored.name, _ENCODE_ROWS).address,
    )  # fmt: skip
