"""A sequence's cache: layers of pages, their windows, their ends.

A `LayerCache` has a key side and a value side (`engine.kv.side_cache`), each with its own type and
page length.  Tokens of a token format are written straight into their page; tokens of a page format
wait in the *tail*, and are packed the moment the page is full.  So every token reads the packed
form of all earlier pages and the exact form of its own, however the prompt was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import InputError
from engine.kv.cache_type import CacheType
from engine.kv.side_cache import Count, Packer, Repacker, SideCache, encode_small, pack_tail

if TYPE_CHECKING:
    from engine.kv.budget import Share


class LayerCache:
    """Keys and values of one layer.  `window` is the attention span in tokens, None for all."""

    def __init__(
        self,
        types: tuple[CacheType, CacheType],
        kv_heads: int,
        head_dim: int,
        n_ctx: int,
        window: int | None,
        index: int,
        position: np.ndarray | None = None,
    ) -> None:
        if types[0].sink != types[1].sink:
            sinks = f"{types[0].sink} and {types[1].sink}"
            raise InputError(f"layer {index}: keys and values need equally many sinks, not {sinks}")
        self.count = Count(np.zeros(1, np.int64) if position is None else position)
        self.k = SideCache("k", types[0], kv_heads, head_dim, n_ctx, self.count, window)
        self.v = SideCache("v", types[1], kv_heads, head_dim, n_ctx, self.count, window)
        self.window, self.index, self.n_ctx = window, index, n_ctx
        self.share: Share | None = None  # of a budget

    @property
    def n(self) -> int:
        return self.count.n

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def segments(self, tokens: int) -> Iterator[slice]:
        """Cut `tokens` new tokens where a tail is full, or any page if the layer has a share of a
        budget; the cache advances between the cuts."""
        start = 0
        while start < tokens:
            rooms = (side.room(self.share is not None) for side in (self.k, self.v))
            size = min([tokens - start, *(room for room in rooms if room is not None)])
            yield slice(start, start + size)
            start += size

    def cuts(self, tokens: int) -> list[slice]:
        """The `segments` of tokens that are no sinks, of a layer without a share."""
        ends = sorted({*self.k.ends(tokens), *self.v.ends(tokens), tokens})
        return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]

    def open_pages(self, tokens: int) -> None:
        """Make the pages that take the next tokens."""
        self.k.open_pages(tokens)
        self.v.open_pages(tokens)

    def full(self) -> bool:
        """Whether a page of either side is to be packed, or is full if the layer has a share."""
        return any(side.due(self.share is not None) for side in (self.k, self.v))

    def seal(self, pack: Packer = pack_tail) -> None:
        """Pack full pages."""
        self.k.seal(pack)
        self.v.seal(pack)

    def must_shrink(self, k: int, v: int) -> tuple[int, int]:
        """How many of the oldest pages of keys and values a budget wants small, at least k and
        v."""
        return (k, v) if self.share is None else self.share.shrunk(self.n, k, v)

    def shrink(self, repack: Repacker = encode_small) -> None:
        """Let old pages become smaller where a budget asks for it."""
        k, v = self.must_shrink(int(self.k.shrunk[0]), int(self.v.shrunk[0]))
        self.k.shrink(k, repack)
        self.v.shrink(v, repack)

    def evict(self, since: int) -> None:
        """Free the pages that no later query can see, if there are full ones beyond token `since`.

        One page more than the window is kept, so that a short roll-back stays possible.
        """
        if self.window is not None:
            for side in (self.k, self.v):
                size = side.type.page_tokens
                if self.n // size > since // size:
                    side.evict(self.n // size * size - self.window - size)


class KVCache:
    """The cache of one sequence: `layers` in order, all with the same number of tokens.

    With a `budget` of so many bytes, `capacity` is the most tokens that fit it and the context.
    `recorded` is what was recorded to run on this cache.
    """

    def __init__(
        self,
        layers: list[LayerCache],
        n_ctx: int,
        budget: int | None = None,
        capacity: int | None = None,
    ) -> None:
        self.layers, self.n_ctx, self.budget = layers, n_ctx, budget
        self.capacity = n_ctx if capacity is None else capacity
        self._sinks = [layer.k.type.sink for layer in layers if layer.k.type.sink]
        self.recorded: dict[Any, Any] = {}
        own = {id(layer.count.position): layer.count.position for layer in layers}
        self._positions = list(own.values())  # one, if the layers share theirs
        self._change = 0  # tokens with which more than their number changes, 0 if unknown

    @property
    def n(self) -> int:
        """Tokens held."""
        return self.layers[0].n

    @property
    def open_sinks(self) -> int:
        """Layers whose next token is a sink: its ops are other ones."""
        return sum(self.n < sink for sink in self._sinks)

    def open_pages(self, tokens: int) -> None:
        """Make the pages that take the next tokens."""
        if self.n + tokens < self._change:
            return
        for layer in self.layers:
            layer.open_pages(tokens)

    def count_one(self) -> bool:
        """Count one token if nothing else is to be done: every layer has appended it to pages that
        it does not fill, and has no tokens pending.  Whether that was so."""
        count = self.layers[0].count
        n = count.n + 1
        if count.pending or n >= self._change:
            return False
        for position in self._positions:
            position[0] = n
        return True

    def advance(self, tokens: int) -> None:
        """Count the chunk's tokens, which every layer has appended, among those held."""
        n = int(self.layers[0].count.position[0]) + tokens
        for layer in self.layers:
            layer.count.settle(n)
            layer.evict(n - tokens)
        self._change = min(s.next_change() for layer in self.layers for s in (layer.k, layer.v))

    @property
    def nbytes(self) -> int:
        """Bytes allocated: codes, metadata, tails."""
        return sum(layer.nbytes for layer in self.layers)

    def truncate(self, n: int) -> int:
        """Keep at most the first `n` tokens; returns how many stayed.

        Page formats fall back to a page boundary, and a sliding window that has lost the tokens
        before the cut falls back to nothing.
        """
        try:
            return self._truncate(n)
        except BaseException:
            # Ctrl-C, say: half of the pages may be gone, and which is known no more
            self._truncate(n)
            raise

    def _truncate(self, n: int) -> int:
        """The same; broken off and begun again it comes to the same."""
        self._change = 0
        sides = [side for layer in self.layers for side in (layer.k, layer.v)]
        n = min([n, *(layer.n for layer in self.layers)])
        while (kept := min((side.boundary(n) for side in sides), default=n)) < n:
            n = kept
        for layer in self.layers:
            held = max(layer.k.first_held(), layer.v.first_held())
            if layer.window is not None and held > max(0, n - layer.window + 1):
                n = 0
        # first, as without their pages they could not be counted again
        for layer in self.layers:
            layer.count.settle(n)
        for side in sides:
            side.truncate(n)
        return n

    def check_room(self, tokens: int) -> None:
        """Raise InputError if `tokens` more do not fit."""
        n = self.n
        if n + tokens <= self.capacity:
            return
        if n + tokens > self.n_ctx:
            raise InputError(
                f"context full: {n} tokens cached and {tokens} more exceed the context of "
                f"{self.n_ctx}; raise -c or shorten the prompt"
            )
        raise InputError(
            f"KV budget full: {n} tokens cached and {tokens} more exceed the "
            f"{self.capacity} that fit {self.budget} bytes; raise --kv-budget, choose smaller "
            "types or shorten the prompt"
        )
