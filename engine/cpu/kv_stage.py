"""The open pages of a side while a chunk of tokens runs.

What a query reads packed, one before it in the chunk may read exactly, so that while a chunk runs
its pages exist in both forms.  The tail has room for those that are still open when the chunk has
been taken; the others are staged in memory that the next layer uses again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.cpu import elementwise
from engine.cpu.kv_tail import Places
from engine.cpu.memory import Pool
from engine.cpu.program import Program
from engine.kv.cache import SideCache
from engine.memory import address


@dataclass(frozen=True)
class Chunk:
    """How a chunk of tokens is attended from: by `cuts`, which no page's packing falls into, with
    open pages at the addresses in `tables` of keys and of values, by index."""

    cuts: Sequence[slice]
    tables: tuple[int, int]


class Stage:
    """Open pages for the next `tokens` tokens of a side, none of them a sink.

    The first `full` of them are packed before the chunk's last token: `tails`, if there are any.
    `table` is where page 0's address would stand.  `queries` float32 [P, kv_heads, D] are the rows
    of the pages' queries, oldest first, for keys that weigh them.
    """

    def __init__(self, program: Program, pool: Pool, side: SideCache, tokens: int) -> None:
        self.queries: list[np.ndarray] = []
        self.full = len(side.ends(tokens))
        self.table = address(side.table)
        kind, paged = side.type, side.paged + tokens
        if kind.tail is None:
            side.open_pages(tokens)
            return
        first, stop = len(side.pages), -(-paged // kind.page_tokens)
        kept = max(first, stop - kind.tail_pages)
        side.open_tail(kept, paged)
        page = side.open_page(kept)
        filled = range(first, min(kept, -(-side.paged // kind.page_tokens)))
        held = [side.open_page(index) for index in filled]
        self._pages = _staged(program, pool, page, kept - first, held)
        rows = side.query_rows(range(first, stop))
        if rows:
            staged = _staged(program, pool, rows[0], kept - first, rows[: len(filled)])
            self.queries = [*staged, *rows[kept - first :]]
        start, each = address(self._pages), page.nbytes
        table = np.empty(stop - first, np.int64)
        table[: kept - first] = range(start, start + each * (kept - first), each)
        table[kept - first :] = side.table[kept:stop]
        program.hold(table)
        self.tails = Places(address(table), self.full, len(page), page.strides[0])
        self.table = address(table) - 8 * first

    def rows_by_page(self, first: int) -> list[np.ndarray]:
        """`queries`, so that page i's are those of i modulo their number, `first` being the first
        page's index."""
        turn = -first % len(self.queries)
        return self.queries[turn:] + self.queries[:turn]


def _staged(
    program: Program, pool: Pool, like: np.ndarray, count: int, filled: Sequence[np.ndarray]
) -> np.ndarray:
    """Memory for `count` pages, the first of them copies of those that are `filled` in part."""
    found = pool.take((count, *like.shape), like.dtype)
    for page, staged in zip(filled, found, strict=False):
        elementwise.copy(program, page.view(np.float32), staged.view(np.float32))
    return found


def new_places(program: Program, side: SideCache, count: int) -> Places:
    """Where the new pages are that the oldest `count` pages of the side's tail become."""
    first, pages = len(side.pages), side.new_pages(count)
    program.hold(side.table, *pages)
    return Places(address(side.table) + 8 * first, count, len(pages[0]), pages[0].strides[0])
