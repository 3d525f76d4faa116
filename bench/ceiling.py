"""The read bandwidth of this machine: what no kernel that streams its data can exceed.

python -m bench.ceiling [-t THREADS]
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from engine.config import available_cores

NBYTES = 1 << 30  # far more than the caches: shared ones of some hundred MiB exist
PASSES = 7


@njit(nogil=True)
def _read(words: np.ndarray) -> int:
    """All of `words`, combined so that none of the reads can be left out."""
    found = 0
    for i in range(words.shape[0]):
        found ^= words[i]
    return found


class Ceiling:
    """A large buffer, read by `threads` threads at once, each its own part of it."""

    def __init__(self, threads: int) -> None:
        # ones, not zeros: pages that were never written all share one page of zeros
        self._words = np.ones(NBYTES // 8, np.int64)
        self._parts = np.array_split(self._words, threads)
        self._pool = ThreadPoolExecutor(threads)
        _read(self._words[:8])  # compiled before it is timed

    def sweep(self) -> float:
        """Read the buffer once; seconds.  Whatever else was in the caches is not any more."""
        start = time.perf_counter()
        list(self._pool.map(_read, self._parts))
        return time.perf_counter() - start

    def bandwidth(self) -> float:
        """Bytes per second of the fastest pass: other work on the machine slows a pass down."""
        return NBYTES / min(self.sweep() for _ in range(PASSES))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the read bandwidth of the memory.")
    parser.add_argument("-t", "--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    print(f"read bandwidth with {threads} threads: {Ceiling(threads).bandwidth() / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
