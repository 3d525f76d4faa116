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

    `pages` uint8 [kv_heads, bytes] are those of a tail, oldest first, and `queries` float32
    [P, kv_heads, D] the rows of their queries, for keys that weigh them; the first `full` pages are
    packed before the chunk's last token.  `table` is where page 0's address would stand.
    """

    def __init__(self, program: Program, pool: Pool, side: SideCache, tokens: int) -> None:
        self.pages: list[np.ndarray] = []
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
        self.pages = [side.open_page(index) for index in range(first, stop)]
        self.queries = side.query_rows(range(first, stop))
        for held in (self.pages, self.queries):
            for i in range(min(kept - first, len(held))):
                filled = (first + i) * kind.page_tokens < side.paged
                held[i] = _staged(program, pool, held[i], filled)
        places = np.array([address(page) for page in self.pages], np.int64)
        program.hold(places)
        self.table = address(places) - 8 * first

    def rows_by_page(self, first: int) -> list[np.ndarray]:
        """`queries`, so that page i's are those of i modulo their number, `first` being the first
        page's index."""
        turn = -first % len(self.queries)
        return self.queries[turn:] + self.queries[:turn]


def _staged(program: Program, pool: Pool, x: np.ndarray, filled: bool) -> np.ndarray:
    """Memory like x, which is copied if it has been `filled` in part."""
    found = pool.take(x.shape, x.dtype)
    if filled:
        elementwise.copy(program, x.view(np.float32), found.view(np.float32))
    return found
