"""Packing pages into the smaller type that a budget asks for: unpacked, if they hold codes, and
sealed anew, byte for byte as `engine.kv.side_cache.encode_small` does it."""

from __future__ import annotations

import numpy as np

from engine.cpu import kv_unpack
from engine.cpu.jit import Verb, call, field
from engine.cpu.kv_seal import format_variant, has_verb, packable, seal_pages
from engine.cpu.kv_seal_tokens import seal_tokens
from engine.cpu.kv_tail import places
from engine.cpu.memory import Pool
from engine.cpu.program import Program
from engine.cpu.team import Team
from engine.kv.cache import CacheType, SideCache
from engine.kv.format import TokenFormat
from engine.kv.formats.channels import ChannelFormat
from engine.kv.formats.floats import F32
from engine.kv.formats.kivi import KiviFormat
from engine.kv.formats.waterfill import WaterFilledFormat
from engine.memory import address, aligned_zeros


def _unpack_item(arguments, item, slot):
    """Item: a KV head.  Fields: the verb; page, scratch, rows and power with their bytes per head
    or thread; then the arguments of `unpack` from `n` on."""
    power = field(arguments, 8)
    call(field(arguments, 1), (
        field(arguments, 2) + item * field(arguments, 3),
        field(arguments, 4) + slot * field(arguments, 5),
        field(arguments, 6) + item * field(arguments, 7),
        power + item * field(arguments, 9) if power != 0 else 0,
        field(arguments, 10), field(arguments, 11), field(arguments, 12),
        field(arguments, 13), field(arguments, 14), field(arguments, 15),
    ))  # fmt: skip


_UNPACK_ITEM = Verb(_unpack_item)


def repackable(side: SideCache) -> bool:
    """Whether there are verbs that pack the side's pages into its smaller type."""
    kind, stored = side.type, side.type.format
    readable = isinstance(stored, TokenFormat) or kv_unpack.unpacker(stored) is not None
    return readable and kind.small is not None and packable(_as_tail(kind))


def _as_tail(kind: CacheType) -> CacheType:
    """The smaller type with a tail of rows: those of the pages themselves, or float32."""
    assert kind.small is not None
    tail = kind.format if isinstance(kind.format, TokenFormat) else F32
    return CacheType(kind.small, kind.page_tokens, tail)


class Repacking:
    """What packs pages of `side`, or of another side of the same types and shape, into the smaller
    type; recorded once, it works on copies that stay where they are."""

    def __init__(self, threads: int, side: SideCache) -> None:
        kind, heads, dim = side.type, side.kv_heads, side.head_dim
        assert kind.small is not None
        tokens = kind.page_tokens
        self._page = aligned_zeros((heads, kind.format.page_nbytes(tokens, dim)), np.uint8)
        self._small = aligned_zeros((heads, kind.small.page_nbytes(tokens, dim)), np.uint8)
        program, pool = Program(), Pool()
        rows, power = self._page, None
        if not isinstance(kind.format, TokenFormat):
            rows, power = self._unpack(program, pool, threads, side)
        tail, where = _as_tail(kind), (program, pool, threads)
        held, small = places(program, [rows]), places(program, [self._small])
        if has_verb(tail):
            # the same row of weights for every token
            queries = [] if power is None else [np.broadcast_to(power, (tokens, heads, dim))]
            seal_pages(*where, tail, held, side.side, dim, small, queries)
        else:
            seal_tokens(*where, tail, held, dim, small)
        # the pool takes nothing back while it lives
        self._keep, self._table = (program, pool), program.table()

    def _unpack(
        self, program: Program, pool: Pool, threads: int, side: SideCache
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The page's rows as bytes of F32 [kv_heads, bytes] and what its queries weigh."""
        kind, heads, dim, stored = side.type, side.kv_heads, side.head_dim, side.type.format
        verb, tokens = kv_unpack.unpacker(stored), kind.page_tokens
        assert verb is not None and kind.small is not None
        assert isinstance(stored, ChannelFormat | KiviFormat | WaterFilledFormat)
        told = kind.small.weighted and stored.weighted and side.side == "k"
        power = aligned_zeros((heads, dim), np.float32) if told else None
        nbytes = F32.page_nbytes(tokens, dim)
        rows = aligned_zeros((heads, nbytes + 64), np.uint8)
        scratch = pool.take((threads, kv_unpack.scratch_nbytes(tokens, dim)), np.uint8)
        program.hold(rows, scratch)
        program.add(
            _UNPACK_ITEM, heads, verb.address,
            address(self._page), self._page.strides[0],
            address(scratch), scratch.strides[0], address(rows), rows.strides[0],
            *((0, 0) if power is None else (address(power), power.strides[0])),
            tokens, dim, int(side.side == "v"), *format_variant(stored, tokens, side.side),
            stored.codes_nbytes(tokens, dim),
        )  # fmt: skip
        return rows, power

    def run(self, team: Team, page: np.ndarray, small: np.ndarray) -> None:
        """Pack `page` into `small`, uint8 [kv_heads, bytes]."""
        self._page[...] = page
        team.run(self._table)
        small[...] = self._small
