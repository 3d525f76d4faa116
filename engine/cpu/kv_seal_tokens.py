"""Packing pages of token formats that leave the exact window: rows of one format to rows of
another, byte for byte as the formats' own NumPy does it."""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, call, field
from engine.cpu.kv_decode import DECODERS
from engine.cpu.kv_encode import ENCODERS
from engine.cpu.memory import Pool
from engine.cpu.simd import store_f32
from engine.cpu.team import Program
from engine.kv.cache import CacheType
from engine.kv.format import TokenFormat


def _seal_item(arguments, head, slot):
    """Item: a KV head.  Fields: tail, bytes per head, page, bytes per head, scratch, bytes per
    thread, tokens, D, decoder, bytes of a row, values of one, encoder, bytes of a row, values of
    one.  The scratch holds a row."""
    rows = field(arguments, 1) + head * field(arguments, 2)
    page = field(arguments, 3) + head * field(arguments, 4)
    row, values = field(arguments, 5) + slot * field(arguments, 6), field(arguments, 14)
    for t in range(field(arguments, 7)):
        call(field(arguments, 9), (rows + t * field(arguments, 10), row, field(arguments, 11)))
        for d in range(field(arguments, 8), values):
            store_f32(row + 4 * d, np.float32(0))
        call(field(arguments, 12), (row, page + t * field(arguments, 13), values))


_SEAL_ITEM = Verb(_seal_item)


def seal_tokens(
    program: Program,
    pool: Pool,
    threads: int,
    kind: CacheType,
    tail: np.ndarray,
    head_dim: int,
    page: np.ndarray,
) -> None:
    """Pack a full page of the tail uint8 [kv_heads, bytes] into `page` uint8 [kv_heads, bytes]."""
    old, new = kind.tail, kind.format
    assert old is not None and isinstance(new, TokenFormat)
    old_values, new_values = old.channels(head_dim), new.channels(head_dim)
    scratch = pool.take((threads, -(-max(old_values, new_values) // 16) * 16))
    program.add(
        _SEAL_ITEM, len(tail),
        tail.ctypes.data, tail.strides[0], page.ctypes.data, page.strides[0],
        scratch.ctypes.data, scratch.strides[0], kind.page_tokens, head_dim,
        DECODERS[old.name].address, old.row_nbytes(head_dim), old_values,
        ENCODERS[new.name].address, new.row_nbytes(head_dim), new_values,
    )  # fmt: skip
