"""A cache within a number of bytes: its oldest pages become smaller, values before keys.

Every layer has a share of the bytes, and how many of its pages are small is the least that fits the
share with the tokens held: a function of their number alone, whatever the chunks.  Since layers are
worked on one after another, only shares of their own keep the sum within the budget at any moment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.errors import InputError
from engine.kv.cache import LayerCache
from engine.kv.cache_type import CacheType
from engine.kv.format import KVFormat, Side
from engine.kv.formats import SMALL, kv_format, side_type
from engine.kv.modifiers import PLAIN
from engine.kv.side_cache import SideCache


class TooSmall(InputError):
    """A budget that not even the first tokens fit."""


@dataclass(frozen=True)
class Budget:
    """`nbytes` for everything that a cache allocates.

    `ctk` and `ctv` name the types that the oldest pages of keys and values are packed into; the
    type that they have lets them stay, and None is the smaller type that a cache type has, or else
    the first of `SMALL` that takes at most 3/4 of its bytes, unless they are `kept` as they are.
    """

    nbytes: int
    ctk: str | None = None
    ctv: str | None = None
    kept: bool = False

    def types(self, k: CacheType, v: CacheType) -> tuple[CacheType, CacheType]:
        """`k` and `v` with the smaller types.

        Raises InputError for an unknown one, or one with pages of another length.
        """
        ctk, ctv = self.ctk and side_type(self.ctk, "k"), self.ctv and side_type(self.ctv, "v")
        return _shrinking(k, ctk, self.kept, "k"), _shrinking(v, ctv, self.kept, "v")


def _shrinking(kind: CacheType, name: str | None, kept: bool, side: Side) -> CacheType:
    if name is None:
        return kind if kind.small or kept else replace(kind, small=_default(kind, side))
    small = kv_format(name)
    if small.modifiers not in (PLAIN, kind.modifiers):
        raise InputError(f"{name}: smaller pages of {kind.name} have its modifiers and no others")
    small = replace(small, modifiers=PLAIN)
    return replace(kind, small=None if small == kind.format else small)


def _default(kind: CacheType, side: Side) -> KVFormat | None:
    # pages of weighted keys tell what their queries weighed
    for name in (small.name + "q" * kind.weighs(side) for small in SMALL):
        found = kv_format(name)
        if found.page_tokens != kind.page_tokens:
            found = kv_format(f"{name}:{kind.page_tokens}")
        # whatever the channels: padding aside, they take equally many bits
        if found.bits_per_value(kind.page_tokens, 128) <= 0.75 * kind.bits_per_value(128):
            return found
    return None


class _SideBytes:
    """What the pages of one side take."""

    def __init__(self, side: SideCache, window: int | None, chunk: int) -> None:
        kind, dim, heads = side.type, side.head_dim, side.kv_heads
        self._side, size = side, kind.page_tokens
        self._page = heads * kind.format.page_nbytes(size, dim)
        self._small = self._page
        if kind.small is not None:
            self._small = heads * kind.small.page_nbytes(size, dim)
            if self._small >= self._page:
                raise InputError(
                    f"{kind.small.name}: its pages take {self._small} bytes with heads of {dim} "
                    f"channels, and those of {kind.name} only {self._page}"
                )
        self.sealing = 0 if kind.tail is None else self._page
        self._sinks = heads * kind.sink_format.page_nbytes(kind.sink, dim)
        self.shrinks = kind.small is not None
        # a window's pages are freed after a chunk, one page more being kept
        self._most = None if window is None else -(-(chunk + window) // size) + 2
        # beside the old page while it is repacked
        self.repacking = self._small if self.shrinks else 0

    def full(self, n: int, end: int) -> int:
        """Pages that may be small when there are `n` tokens of at most `end`: full ones, but for a
        tail's and the very last one, which takes the place of the open one."""
        kind = self._side.type
        return kind.sealed((n if kind.tail else min(n, end - 1)) - kind.sink)

    def nbytes(self, n: int, end: int, small: int) -> int:
        """Bytes while there are `n` tokens of at most `end` and no page is filled, the oldest
        `small` being small; of a window the most that it can have."""
        full = self.full(n, end)
        gone = 0 if self._most is None else max(0, full - self._most)
        shrunk = max(0, min(small, full) - gone)
        pages = (full - gone - shrunk) * self._page + shrunk * self._small
        return self._sinks + self._open(end) + pages

    def _open(self, end: int) -> int:
        side, kind = self._side, self._side.type
        if kind.tail is None:
            return self._page
        return side.kv_heads * kind.tail_nbytes(side.head_dim, side.side, max(0, end - kind.sink))


class Share:
    """The bytes that one layer may take; `nbytes`, for at most `end` tokens, is given out by
    `allot`."""

    def __init__(self, layer: LayerCache, chunk: int) -> None:
        self._k, self._v = (_SideBytes(side, layer.window, chunk) for side in (layer.k, layer.v))
        self.nbytes = self.end = 0
        # a page being sealed, or one that is small already and still there as it was
        both = (self._k, self._v)
        self.passing = sum(s.sealing for s in both) + max(s.repacking for s in both)

    def shrunk(self, n: int, k: int, v: int) -> tuple[int, int]:
        """How many pages of keys and values must be small when there are `n` tokens, at least k
        and v."""
        most_k, most_v = self._all(n, self.end)
        while self._nbytes(n, self.end, k, v) > self.nbytes:
            if v < most_v:
                v += 1
            elif k < most_k:
                k += 1
            else:
                break
        return k, v

    def least(self, n: int) -> int:
        """Bytes for `n` tokens, and no more, when all full pages are small."""
        return self._nbytes(n, n, *self._all(n, n))

    def gain(self, n: int) -> int:
        """Bytes that small pages save with `n` tokens."""
        return self._nbytes(n, n, 0, 0) - self.least(n)

    def _nbytes(self, n: int, end: int, k: int, v: int) -> int:
        return self._k.nbytes(n, end, k) + self._v.nbytes(n, end, v)

    def _all(self, n: int, end: int) -> tuple[int, int]:
        k, v = (side.full(n, end) if side.shrinks else 0 for side in (self._k, self._v))
        return k, v


def allot(layers: Sequence[LayerCache], nbytes: int, n_ctx: int, chunk: int) -> int:
    """Give every layer its share of `nbytes`; returns the most tokens, up to `n_ctx`, that fit.

    What small pages would leave of the budget goes to windows first: they are bounded, and their
    tokens are the newest.  `chunk` is the most tokens that are appended at once.  Raises TooSmall
    if nothing fits, and InputError if a smaller type is not smaller.
    """
    shares = [Share(layer, chunk) for layer in layers]
    free = nbytes - max(share.passing for share in shares)

    def needed(n: int) -> int:
        return sum(share.least(n) for share in shares)

    if needed(1) > free:
        raise TooSmall(
            f"KV budget of {nbytes} bytes: too small, the first tokens alone take "
            f"{nbytes - free + needed(1)}"
        )
    capacity = bisect_right(range(1, n_ctx + 1), free, key=needed)
    spare = free - needed(capacity)
    for bounded in (True, False):
        pairs = zip(shares, layers, strict=True)
        group = [share for share, layer in pairs if bounded == (layer.window is not None)]
        gain = sum(share.gain(capacity) for share in group)
        part = min(spare, gain)
        for share in group:
            share.nbytes = share.least(capacity) + part * share.gain(capacity) // max(gain, 1)
        spare -= part
    for layer, share in zip(layers, shares, strict=True):
        layer.share, share.end = share, capacity
    return capacity
