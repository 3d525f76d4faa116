"""Packing pages of token formats that leave the exact window: rows of one format to rows of
another, byte for byte as the formats' own NumPy does it."""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, call, field
from engine.cpu.kv_decode import DECODERS
from engine.cpu.kv_encode import ENCODERS
from engine.cpu.kv_tail import Places, tail_fields, tail_item
from engine.cpu.memory import Pool
from engine.cpu.program import Program
from engine.cpu.simd import store_f32
from engine.kv.cache import CacheType
from engine.kv.format import TokenFormat


def _seal_item(arguments, item, slot):
    """Item: a KV head of a page.  Fields: `tail_fields`, tokens, D, decoder, bytes of a row, values
    of one, encoder, bytes of a row, values of one.  The scratch holds a row."""
    rows, page, row = tail_item(arguments, item, slot)
    values = field(arguments, 15)
    for t in range(field(arguments, 8)):
        call(field(arguments, 10), (rows + t * field(arguments, 11), row, field(arguments, 12)))
        for d in range(field(arguments, 9), values):
            store_f32(row + 4 * d, np.float32(0))
        call(field(arguments, 13), (row, page + t * field(arguments, 14), values))


_SEAL_ITEM = Verb(_seal_item)


def seal_tokens(
    program: Program,
    pool: Pool,
    threads: int,
    kind: CacheType,
    tails: Places,
    head_dim: int,
    pages: Places,
) -> np.ndarray:
    """Pack full pages of the tail into `pages`.

    Returns the memory that it needs meanwhile.
    """
    old, new = kind.tail, kind.format
    assert old is not None and isinstance(new, TokenFormat)
    old_values, new_values = old.channels(head_dim), new.channels(head_dim)
    scratch = pool.take((threads, -(-max(old_values, new_values) // 16) * 16))
    program.add(
        _SEAL_ITEM, tails.number * tails.heads,
        *tail_fields(tails, pages, scratch), kind.page_tokens, head_dim,
        DECODERS[old.name].address, old.row_nbytes(head_dim), old_values,
        ENCODERS[new.name].address, new.row_nbytes(head_dim), new_values,
    )  # fmt: skip
    return scratch
