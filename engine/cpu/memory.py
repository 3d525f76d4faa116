"""Memory for kernels: arrays that stay, and a pool whose blocks return when nobody holds them."""

from __future__ import annotations

import math
import mmap
from collections import defaultdict
from typing import Any

import numpy as np

from engine.memory import LINE, address, aligned_zeros, huge_zeros

_CHUNK, _POOL_CHUNK = 1 << 28, 1 << 22  # bytes of an arena's mapping, of a pool's
_LARGE = 1 << 14  # bytes of a block that huge pages are worth
_AROUND = 1 << 16  # bytes of a file that Linux maps when one of them is read


class Arena:
    """Memory for what stays: zeroed arrays one behind another, in huge pages where there are any.

    Weights stream past the address cache of ordinary pages: in huge ones they come faster.
    """

    def __init__(self, chunk: int = _CHUNK) -> None:
        self._least, self._chunk, self._used = chunk, np.empty(0, np.uint8), 0

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 zeros that start on a cache line."""
        nbytes = math.prod(shape)
        if self._used + nbytes > self._chunk.size:
            # what is never touched costs nothing
            self._chunk, self._used = huge_zeros(max(self._least, nbytes)), 0
        taken = self._chunk[self._used : self._used + nbytes].reshape(shape)
        self._used += -(-nbytes // LINE) * LINE
        return taken


_Room = tuple[np.ndarray, int]  # a block's memory and its address


class _Block:
    """The base object of an array in a block of a pool, and of its views."""

    __slots__ = ("__array_interface__", "_pool", "_room")

    def __init__(self, pool: Pool, room: _Room, shape: tuple[int, ...], typestr: str) -> None:
        self._pool, self._room = pool, room
        self.__array_interface__ = {
            "data": (room[1], False),
            "shape": shape,
            "typestr": typestr,
            "version": 3,
        }

    def __del__(self) -> None:
        self._pool.give_back(self._room)


class Pool:
    """Blocks of memory by size.

    Fresh memory for every temporary would cost a page fault per 4 KB, a tenth of a prompt's time.
    A recorded program runs its entries in order, so a block may serve again as soon as no array of
    the recording holds it.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[_Room]] = defaultdict(list)
        self._arena = Arena(_POOL_CHUNK)

    def take(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An array of undefined contents that starts on a cache line."""
        kind = np.dtype(dtype)
        nbytes = math.prod(shape) * kind.itemsize
        size = max(LINE, 1 << (nbytes - 1).bit_length()) if nbytes else LINE
        free = self._free[size]
        room = free.pop() if free else self._new(size)
        return np.asarray(_Block(self, room, shape, kind.str))

    def _new(self, size: int) -> _Room:
        # tiles load rows from page after page: the address cache is too small for ordinary ones
        memory = self._arena.take((size,)) if size >= _LARGE else aligned_zeros((size,))
        return memory, address(memory)

    def give_back(self, room: _Room) -> None:
        self._free[room[0].size].append(room)


def pooled(array: np.ndarray) -> bool:
    """Whether the array's memory is a block of a pool, which outlives it."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, _Block)


def file_pages(data: np.ndarray, part: np.ndarray) -> tuple[int, int]:
    """Address and bytes of the pages behind `part` of `data`, and of those around it that are
    mapped along with them: pages that the system may drop, as it can read them again.  No bytes
    where they are not a file's."""
    base: Any = data
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None) if not isinstance(base, memoryview) else base.obj
    if base is None or not hasattr(mmap, "MADV_DONTNEED"):
        return 0, 0
    start, end = address(part), address(part) + part.nbytes
    first = max(start // _AROUND * _AROUND, address(data) // mmap.PAGESIZE * mmap.PAGESIZE)
    last = min(-(-end // _AROUND) * _AROUND, address(data) + data.nbytes)
    return first, last - first
