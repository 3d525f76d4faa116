"""Zeroed memory: on cache lines, in huge pages."""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import Any

import numpy as np

LINE = 64  # bytes: vectors and tiles are loaded by the cache line
_HUGE = 1 << 21  # bytes of a huge page
_first_byte: Any = ctypes.c_char.from_buffer


def aligned_zeros(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    """Zeroed memory that starts on a cache line."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + LINE, np.uint8)
    start = -address(raw) % LINE
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def address(array: np.ndarray) -> int:
    """Where the array's memory begins."""
    try:
        # a third of the time of `array.ctypes.data`, and a prompt's program asks 150 times a layer
        return ctypes.addressof(_first_byte(array))
    except (TypeError, ValueError):  # read-only, with gaps or empty
        return array.ctypes.data


def huge_zeros(nbytes: int) -> np.ndarray:
    """uint8 zeros that start on a huge page, for the system to use them if it likes."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return aligned_zeros((nbytes,))
    # shared mappings, mmap's default, get no huge pages
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapped = mmap.mmap(-1, nbytes + _HUGE, flags=private)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(mapped, np.uint8)
    start = -address(raw) % _HUGE
    return raw[start : start + nbytes]


def trim() -> None:
    """Give the system back what was freed and C's library keeps for later, where it can be asked
    to: a millisecond for some ten megabytes."""
    given_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if given_back is not None:
        given_back(0)
