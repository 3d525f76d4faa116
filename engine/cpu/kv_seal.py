"""Packing the pages of caches, byte for byte as their formats' own NumPy does it.

The kernels are `seal` of `engine.cpu.kv_seal_channels`, `kv_seal_kivi` and `kv_seal_waterfill`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.cpu import kv_seal_channels, kv_seal_kivi, kv_seal_waterfill
from engine.cpu.jit import Verb, call, field
from engine.cpu.kv_decode import DECODERS
from engine.cpu.kv_ranges import MINIMA, NORMS
from engine.cpu.kv_seal_channels import RESTORED
from engine.cpu.kv_seal_tokens import seal_tokens
from engine.cpu.kv_tail import Places, addresses, tail_fields, tail_item
from engine.cpu.memory import Pool
from engine.cpu.program import Program
from engine.cpu.simd import store_i64
from engine.kv.cache import CacheType, SideCache
from engine.kv.format import KVFormat, Side, TokenFormat
from engine.kv.formats.channels import ChannelFormat
from engine.kv.formats.kivi import KiviFormat
from engine.kv.formats.waterfill import WaterFilledFormat, group_channels
from engine.memory import address


def _seal_item(arguments, item, slot):
    """Item: a KV head of a page.  Fields: `tail_fields`, the arguments of `seal` from `tokens` on,
    then its address."""
    rows, page, scratch = tail_item(arguments, item, slot)
    call(field(arguments, 16), (
        rows, page, scratch,
        field(arguments, 8), field(arguments, 9), field(arguments, 10), field(arguments, 11),
        field(arguments, 12), field(arguments, 13), field(arguments, 14), field(arguments, 15),
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


def packable(kind: CacheType) -> bool:
    """Whether there is a verb that packs the pages of a tail into the type."""
    return has_verb(kind) or isinstance(kind.format, TokenFormat)


def format_variant(stored: KVFormat, tokens: int, side: Side) -> tuple[int, int]:
    """Bits per code of a page format and which of its family it is, as the verbs of the family
    know it."""
    assert isinstance(stored, ChannelFormat | KiviFormat | WaterFilledFormat)
    if isinstance(stored, WaterFilledFormat):
        variant = group_channels(tokens, side)
    elif isinstance(stored, KiviFormat):
        variant = stored.group
    else:
        variant = NORMS * (stored.norms != "none") + MINIMA * stored.asym
    return stored.bits, variant


def parameters(kind: CacheType, head_dim: int, side: Side) -> tuple[int, ...]:
    """The arguments of `seal` from `tokens` on; for water-filled types, those up to `values`."""
    stored, tail = kind.format, kind.tail
    assert tail is not None
    bits, variant = format_variant(stored, kind.page_tokens, side)
    if isinstance(stored, ChannelFormat):
        variant += RESTORED * (stored.norms == "restored")
    decoder = DECODERS[tail.name].address
    row = tail.row_nbytes(head_dim), tail.channels(head_dim)
    return kind.page_tokens, head_dim, int(side == "v"), bits, variant, decoder, *row


def seal_pages(
    program: Program,
    pool: Pool,
    threads: int,
    kind: CacheType,
    tails: Places,
    side: Side,
    head_dim: int,
    pages: Places,
    queries: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Pack full pages of the tail into `pages`.

    Returns the memory that it needs meanwhile, which entries `at_once` with it are not to share.
    For types that `has_verb` knows; equal to `engine.kv.side_cache.encode_tail`, `queries` being
    the rows of their `QueryPower`, if any.
    """
    arguments = parameters(kind, head_dim, side)
    if type(kind.format) in _SEALS:
        item, size = _SEAL_ITEM, kv_seal_channels.scratch_nbytes
        arguments += (_SEALS[type(kind.format)].address,)
    else:
        item, size = kv_seal_waterfill.SEAL_ITEM, kv_seal_waterfill.scratch_nbytes
        rows = addresses(program, queries)
        arguments += (rows, queries[0].strides[0]) if queries else (0, 0)
    scratch = pool.take((threads, size(kind.page_tokens, head_dim, arguments[7])), np.uint8)
    items = tails.number * tails.heads
    program.add(item, items, *tail_fields(tails, pages, scratch), *arguments)
    return scratch


def pack_pages(
    program: Program,
    pool: Pool,
    threads: int,
    side: SideCache,
    tails: Places,
    pages: Places,
    queries: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Pack full pages of the side's tail; see `seal_pages`.  For types that `packable` knows."""
    where = program, pool, threads, side.type, tails
    if has_verb(side.type):
        return seal_pages(*where, side.side, side.head_dim, pages, queries)
    return seal_tokens(*where, side.head_dim, pages)


def place(program: Program, page: np.ndarray, table: np.ndarray, index: int) -> None:
    """table[index] = the page's address, once what comes before has run."""
    program.add(_PLACE, 1, address(table) + 8 * index, address(page))
