"""The open pages of a side: tokens that wait in a plain format until their page is packed."""

from __future__ import annotations

import numpy as np

from engine.kv.cache_type import CacheType
from engine.kv.format import Side
from engine.kv.page_memory import PageMemory
from engine.kv.queries import QueryPower

_MEMORY = PageMemory()


def aligned(shape: tuple[int, int], zeroed: bool = True) -> np.ndarray:
    """uint8 memory that starts on a cache line, all of which is written before it is read if it
    is not `zeroed`."""
    return _MEMORY.take(shape, zeroed)


class Tail:
    """Pages uint8 [kv_heads, bytes] in the type's open format: page i has the memory of page
    i - `tail_pages`, which has been packed by then.  They are allocated as they are first needed.

    `queries`, for keys that weigh them, is made with the first page and written by whoever attends.
    """

    def __init__(self, kind: CacheType, side: Side, kv_heads: int, head_dim: int) -> None:
        self._side: Side = side
        self._type, self._shape = kind, (kv_heads, head_dim)
        self._pages: dict[int, np.ndarray] = {}
        self._holds: dict[int, int] = {}  # which page each of them is
        self.queries: QueryPower | None = None

    @property
    def nbytes(self) -> int:
        queries = 0 if self.queries is None else self.queries.rows.nbytes
        return queries + sum(page.nbytes for page in self._pages.values())

    def open(self, index: int) -> np.ndarray:
        """The memory of page `index`, made if need be."""
        kind, (kv_heads, head_dim) = self._type, self._shape
        place = index % kind.tail_pages
        if place not in self._pages:
            if self.queries is None and kind.weighs(self._side):
                rows = kind.tail_pages * kind.page_tokens
                self.queries = QueryPower(rows, kv_heads, head_dim)
            nbytes = kind.open_format.page_nbytes(kind.page_tokens, head_dim)
            self._pages[place] = aligned((kv_heads, nbytes))
        self._holds[place] = index
        return self._pages[place]

    def holds(self, index: int) -> bool:
        """Whether no later page has taken the memory of page `index`."""
        return self._holds.get(index % self._type.tail_pages) == index

    def __getitem__(self, index: int) -> np.ndarray:
        return self._pages[index % self._type.tail_pages]
