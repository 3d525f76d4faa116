"""What can be said of a rate seen in a few trials, and of two rates on the same trials."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # a standard normal lies within +/- this with 95 %


def wilson(passed: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate seen as `passed` of `n`."""
    if not n:
        return 0.0, 1.0
    rate, z2 = passed / n, _Z * _Z
    centre = rate + z2 / (2 * n)
    half = _Z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # at 0 and n an end is exactly 0 or 1; rounding must not push it beyond
    scale = 1 + z2 / n
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def mcnemar(lost: int, gained: int) -> float:
    """The two-sided p of McNemar's exact test.

    `lost` trials passed under the first condition only, `gained` under the second only.  If neither
    is better, each of them is a fair coin: p is the chance of a split at least as uneven.
    """
    n, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(n, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)
