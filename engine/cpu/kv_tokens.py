"""Score and mix on pages of token formats; see `engine.cpu.kv_verbs` for the signatures.

A few tokens at a time are decoded to float32 rows in the first-level cache, which all query rows
then share: products of up to four query rows stay in registers.  Parameters: the decoder's address,
bytes of a row, values that the decoder is to write per row.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from engine.cpu.jit import Verb, call, inlined, kernel
from engine.cpu.kv_floats import (
    add_products,
    add_scaled,
    fetch,
    lane_sums,
    load_sums,
    store_sums,
    zero_sums,
)
from engine.cpu.simd import f32x16, store, zeros

BLOCK = 16  # tokens decoded at a time: their float32 rows stay in the first-level cache


@kernel
def width(dim):
    return (dim + 31) & ~31


@inlined
def decode_block(decoder, rows, count, row_nbytes, values, target, wide, joined):
    """`count` packed rows as float32 rows of `wide` values.

    `joined`, a constant: rows have no padding, so that one call decodes them all.
    """
    if joined:
        call(decoder, (rows, target, count * wide))
    else:
        for t in range(count):
            call(decoder, (rows + t * row_nbytes, target + 4 * t * wide, values))


@inlined
def clear_block(target, wide, joined):
    """Zeros for the padding that decoders of short rows leave as it is."""
    if not joined:
        for i in range(0, 4 * BLOCK * wide, 64):
            store(target + i, zeros(f32x16))


def _row_scores(rows: int) -> Any:
    columns = 4 * rows

    @kernel
    def row_scores(q, tokens, wide, sums, out, stride, ahead, lines):
        """Scores of `rows` query rows with 16 tokens of `wide` float32; sums [rows, 16, 16]."""
        for t in range(0, BLOCK, 4):
            # the next block's memory, a few lines at a time while this one is used
            fetch(ahead + t // 4 * lines * 16, lines // 4)
            found = zero_sums(columns)
            for c in range(0, 4 * wide, 64):
                at = tokens + 4 * t * wide + c
                found = add_products(found, q + c, 4 * wide, at, 4 * wide, rows)
            store_sums(sums + 64 * t, 1024, found, rows)
        for i in range(rows):
            store(out + i * stride, lane_sums(sums + 1024 * i))

    return row_scores


def _row_mixes(rows: int) -> Any:
    @kernel
    def row_mixes(p, stride, tokens, count, wide, out, ahead, lines):
        """out [rows, wide] += the weights p [rows, count] by `count` tokens of `wide` float32."""
        share = lines // (wide // 32)
        for c in range(0, 4 * wide, 128):
            fetch(ahead + c // 2 * share, share)
            found = load_sums(out + c, 4 * wide, rows, 2)
            for t in range(count):
                at = tokens + 4 * t * wide + c
                found = add_scaled(found, p + 4 * t, stride, at, 64, rows)
            store_sums(out + c, 4 * wide, found, rows)

    return row_mixes


_scores_4, _scores_3, _scores_2, _scores_1 = (_row_scores(rows) for rows in (4, 3, 2, 1))
_mixes_4, _mixes_3, _mixes_2, _mixes_1 = (_row_mixes(rows) for rows in (4, 3, 2, 1))


@inlined
def _block_scores(q, rows, tokens, wide, sums, out, stride, ahead, nbytes):
    for i in range(0, rows, 4):
        lines = nbytes // 64 if i == 0 else 0
        row, target, some = q + 4 * i * wide, out + i * stride, rows - i
        if some >= 4:
            _scores_4(row, tokens, wide, sums, target, stride, ahead, lines)
        elif some == 3:
            _scores_3(row, tokens, wide, sums, target, stride, ahead, lines)
        elif some == 2:
            _scores_2(row, tokens, wide, sums, target, stride, ahead, lines)
        else:
            _scores_1(row, tokens, wide, sums, target, stride, ahead, lines)


@inlined
def _block_mixes(p, stride, rows, tokens, count, wide, out, ahead, nbytes):
    for i in range(0, rows, 4):
        lines = nbytes // 64 if i == 0 else 0
        weights, target, some = p + i * stride, out + 4 * i * wide, rows - i
        if some >= 4:
            _mixes_4(weights, stride, tokens, count, wide, target, ahead, lines)
        elif some == 3:
            _mixes_3(weights, stride, tokens, count, wide, target, ahead, lines)
        elif some == 2:
            _mixes_2(weights, stride, tokens, count, wide, target, ahead, lines)
        else:
            _mixes_1(weights, stride, tokens, count, wide, target, ahead, lines)


@cache  # callers keep addresses
def score_verb(joined: bool) -> Verb:
    """score; `joined`: one call decodes many rows."""

    def score(page, n, q, stride, rows, dim, out, scratch, decoder, row_nbytes, values):
        wide = width(dim)
        tokens = scratch + 4 * 1024
        clear_block(tokens, wide, joined)
        for t in range(0, n, BLOCK):
            count, at = min(BLOCK, n - t), page + t * row_nbytes
            decode_block(decoder, at, count, row_nbytes, values, tokens, wide, joined)
            nbytes = BLOCK * row_nbytes
            _block_scores(q, rows, tokens, wide, scratch, out + 4 * t, stride, at + nbytes, nbytes)

    return Verb(score)


@cache  # callers keep addresses
def mix_verb(joined: bool) -> Verb:
    """mix; `joined` as in `score_verb`."""

    def mix(page, n, p, stride, rows, dim, out, scratch, decoder, row_nbytes, values):
        wide = width(dim)
        clear_block(scratch, wide, joined)
        for t in range(0, n, BLOCK):
            count, at = min(BLOCK, n - t), page + t * row_nbytes
            decode_block(decoder, at, count, row_nbytes, values, scratch, wide, joined)
            nbytes = BLOCK * row_nbytes
            _block_mixes(p + 4 * t, stride, rows, scratch, count, wide, out, at + nbytes, nbytes)

    return Verb(mix)


def scratch_nbytes(head_dim: int) -> int:
    """Bytes that score or mix need."""
    return 4 * 1024 + 4 * BLOCK * -(-head_dim // 32) * 32
