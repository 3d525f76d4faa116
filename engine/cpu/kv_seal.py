"""Packing the pages of caches, byte for byte as their formats' own NumPy does it.

The kernels are `seal` of `engine.cpu.kv_seal_channels`, `kv_seal_kivi` and `kv_seal_waterfill`.
"""

from __future__ import annotations

import numpy as np

from engine.cpu import kv_seal_channels, kv_seal_kivi, kv_seal_waterfill
from engine.cpu.jit import Verb, call, field
from engine.cpu.kv_decode import DECODERS
from engine.cpu.kv_ranges import MINIMA, NORMS
from engine.cpu.kv_seal_channels import RESTORED
from engine.cpu.kv_seal_tokens import seal_tokens
from engine.cpu.memory import Pool
from engine.cpu.simd import store_i64
from engine.cpu.team import Program
from engine.kv.cache import CacheType, SideCache
from engine.kv.format import Side, TokenFormat
from engine.kv.formats.channels import ChannelFormat
from engine.kv.formats.floats import F32
from engine.kv.formats.kivi import KiviFormat
from engine.kv.formats.waterfill import WaterFilledFormat, group_channels
from engine.kv.queries import QueryPower
from engine.kv.side_cache import page_queries


def _seal_item(arguments, head, slot):
    """Item: a KV head.  Fields: tail, bytes per head, page, bytes per head, scratch, bytes per
    thread, the arguments of `seal` from `tokens` on, then its address."""
    rows = field(arguments, 1) + head * field(arguments, 2)
    page = field(arguments, 3) + head * field(arguments, 4)
    scratch = field(arguments, 5) + slot * field(arguments, 6)
    call(field(arguments, 15), (
        rows, page, scratch,
        field(arguments, 7), field(arguments, 8), field(arguments, 9), field(arguments, 10),
        field(arguments, 11), field(arguments, 12), field(arguments, 13), field(arguments, 14),
    ))  # fmt: skip


def _place(arguments, item, slot):
    """Fields: the address of a word, what to write there."""
    store_i64(field(arguments, 1), field(arguments, 2))


_SEAL_ITEM, _PLACE = Verb(_seal_item), Verb(_place)
_SEALS = {ChannelFormat: Verb(kv_seal_channels.seal), KiviFormat: Verb(kv_seal_kivi.seal)}


def has_verb(kind: CacheType) -> bool:
    """Whether `seal_pages` serves the type."""
    # a type derived from one of these may encode in its own way
    return type(kind.format) in (*_SEALS, WaterFilledFormat) and kind.tail is not None


def parameters(kind: CacheType, head_dim: int, side: Side) -> tuple[int, ...]:
    """The arguments of `seal` from `tokens` on; for water-filled types, those up to `values`."""
    stored, tail = kind.format, kind.tail
    assert isinstance(stored, ChannelFormat | KiviFormat | WaterFilledFormat) and tail is not None
    if isinstance(stored, WaterFilledFormat):
        variant = group_channels(kind.page_tokens, side)
    elif isinstance(stored, KiviFormat):
        variant = stored.group
    else:
        variant = NORMS * (stored.norms != "none") + MINIMA * stored.asym
        variant += RESTORED * (stored.norms == "restored")
    decoder = DECODERS[tail.name].address
    row = tail.row_nbytes(head_dim), tail.channels(head_dim)
    return kind.page_tokens, head_dim, int(side == "v"), stored.bits, variant, decoder, *row


def seal_pages(
    program: Program,
    pool: Pool,
    threads: int,
    kind: CacheType,
    tail: np.ndarray,
    side: Side,
    head_dim: int,
    pages: np.ndarray,
    queries: QueryPower | None = None,
) -> None:
    """Pack full tails uint8 [kv_heads, bytes] into `pages` uint8 [kv_heads, bytes].

    For types that `has_verb` knows; equal to `engine.kv.side_cache.encode_tail`.
    """
    arguments = parameters(kind, head_dim, side)
    if type(kind.format) in _SEALS:
        item, size = _SEAL_ITEM, kv_seal_channels.scratch_nbytes
        arguments += (_SEALS[type(kind.format)].address,)
    else:
        item, size = kv_seal_waterfill.SEAL_ITEM, kv_seal_waterfill.scratch_nbytes
        rows = None if queries is None else queries.rows
        program.hold(rows)
        arguments += (0, 0) if rows is None else (rows.ctypes.data, rows.strides[0])
    nbytes = size(kind.page_tokens, head_dim, arguments[7])
    scratch = pool.take((threads, nbytes), np.uint8)
    program.add(
        item, len(tail),
        tail.ctypes.data, tail.strides[0], pages.ctypes.data, pages.strides[0],
        scratch.ctypes.data, scratch.strides[0], *arguments,
    )  # fmt: skip


def repack_page(
    program: Program,
    pool: Pool,
    threads: int,
    side: SideCache,
    page: np.ndarray,
    small: np.ndarray,
) -> bool:
    """Pack the side's `page` into `small`, uint8 [kv_heads, bytes], if there is a verb for it.

    Equal to `engine.kv.side_cache.encode_small`.
    """
    kind, stored = side.type, side.type.format
    assert kind.small is not None
    rows = page
    if not isinstance(stored, TokenFormat):
        values = stored.decode(page, side.head_dim, side.side)
        stored, rows = F32, F32.encode(values, side.side)
    as_tail = CacheType(kind.small, kind.page_tokens, stored)
    if not (has_verb(as_tail) or isinstance(kind.small, TokenFormat)):
        return False
    program.hold(rows, small)
    if has_verb(as_tail):
        where = program, pool, threads, as_tail, rows, side.side, side.head_dim, small
        seal_pages(*where, page_queries(side, page))
    else:
        seal_tokens(program, pool, threads, as_tail, rows, side.head_dim, small)
    return True


def place(program: Program, page: np.ndarray, table: np.ndarray, index: int) -> None:
    """table[index] = the page's address, once what comes before has run."""
    program.add(_PLACE, 1, table[index:].ctypes.data, page.ctypes.data)
