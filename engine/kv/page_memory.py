"""Memory for pages that come and go one by one, in huge pages of the system.

Attention streams past the address cache of ordinary 4 KB pages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from threading import Lock
from weakref import WeakValueDictionary, ref

import numpy as np

from engine.memory import LINE, address, huge_zeros

_BLOCK = 1 << 22  # bytes that the system gives, and gets back, together


class _Block:
    """Room for pages of one size; lives as long as one of them."""

    def __init__(self, nbytes: int) -> None:
        self.stride = -(-nbytes // LINE) * LINE
        pages = max(1, _BLOCK // max(LINE, self.stride))
        self._memory = huge_zeros(pages * self.stride)
        self.address = address(self._memory)
        self.free = list(range(pages))[::-1]


class _Place:
    """The base object of a page's array: the last view that goes gives the place back."""

    def __init__(self, block: _Block, index: int, shape: tuple[int, int]) -> None:
        self._block, self._index = block, index
        self.__array_interface__ = {
            "data": (block.address + index * block.stride, False),
            "shape": shape,
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        self._block.free.append(self._index)


class PageMemory:
    """Pages of one size lie side by side, whoever has them, in blocks of 4 MB.

    A page's place serves again when no array has it, and a block goes back to the system with the
    last of its pages.  What no page has taken yet is less than a block for every size.
    """

    def __init__(self) -> None:
        self._blocks: defaultdict[int, WeakValueDictionary[int, _Block]] = defaultdict(
            WeakValueDictionary
        )
        # which of them served last: to look at all that are full would take longer and longer
        self._last: dict[int, Callable[[], _Block | None]] = {}
        self._number, self._lock = count(), Lock()

    def take(self, shape: tuple[int, int], zeroed: bool = True) -> np.ndarray:
        """uint8 that start on a cache line: zeros, or for one that writes every byte before
        anybody reads, what was there."""
        nbytes = math.prod(shape)
        with self._lock:
            block = self._last[nbytes]() if nbytes in self._last else None
            if block is None or not block.free:
                block = self._free_block(nbytes)
            page = np.asarray(_Place(block, block.free.pop(), shape))
        if zeroed:
            page[:] = 0  # of the page that was here before
        return page

    def _free_block(self, nbytes: int) -> _Block:
        """A block with room for a page, and from now on the last."""
        blocks = self._blocks[nbytes]
        block = next((block for block in blocks.values() if block.free), None)
        if block is None:
            blocks[next(self._number)] = block = _Block(nbytes)
        self._last[nbytes] = ref(block)
        return block
