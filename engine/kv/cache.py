"""Pages in memory: who holds which tokens, in which bytes.

A `LayerCache` has a key side and a value side, each with its own type and page length.  Tokens of a
token format are written straight into their page; tokens of a page format wait in the *tail*, a
page in a plain format, and are packed the moment the page is full.  So every token reads the packed
form of all earlier pages and the exact form of its own, however the prompt was cut into chunks.

The first tokens of a sequence, its *sinks*, may stay exact: they have a page of their own, which is
never packed, and page i then begins at token sink + i P.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.kv.cache_type import CacheType
from engine.kv.format import Side
from engine.kv.queries import QueryPower

_LINE = 64  # bytes: pages start on a cache line


def _aligned(shape: tuple[int, int]) -> np.ndarray:
    """Zeroed uint8 memory that starts on a cache line."""
    size = shape[0] * shape[1]
    raw = np.zeros(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size].reshape(shape)


class Count:
    """Tokens held: `position` int64 [1], those before the chunk that is being processed, which
    recorded programs read when they run, and the chunk's that are already `pending` here."""

    def __init__(self, position: np.ndarray) -> None:
        self.position, self.pending = position, 0

    @property
    def n(self) -> int:
        return int(self.position[0]) + self.pending

    def settle(self, n: int) -> None:
        """Let there be n tokens, none of them pending."""
        self.position[0], self.pending = n, 0


def encode_tail(
    kind: CacheType,
    tail: np.ndarray,
    side: Side,
    head_dim: int,
    page: np.ndarray,
    queries: QueryPower | None = None,
) -> None:
    """Pack a full tail uint8 [kv_heads, bytes] into `page` uint8 [kv_heads, bytes]."""
    assert kind.tail is not None
    weights = None if queries is None else queries.weights()
    page[:] = kind.format.encode(kind.tail.decode(tail, head_dim, side), side, weights)


def pack_tail(side: SideCache, page: np.ndarray) -> None:
    """Pack the side's full tail into `page` and put this in the tail's place.

    A backend may have something to the same effect.
    """
    encode_tail(side.type, side.tail, side.side, side.head_dim, page, side.queries)
    side.table[len(side.pages)] = page.ctypes.data


Packer = Callable[["SideCache", np.ndarray], None]


class SideCache:
    """Keys or values of one layer: pages uint8 [kv_heads, bytes], `n` tokens of which are
    filled."""

    def __init__(
        self, side: Side, kind: CacheType, kv_heads: int, head_dim: int, n_ctx: int, count: Count
    ) -> None:
        self.side: Side = side
        self.type, self.kv_heads, self.head_dim = kind, kv_heads, head_dim
        self.count = count
        # pages in the packed format, open one included if there is no tail; None once evicted
        self.pages: list[np.ndarray | None] = []
        # addresses of the sinks' page and, `table`, of the pages, the open one included; 0 for
        # evicted pages
        self.sink_table = np.zeros(1 + -(-n_ctx // kind.page_tokens), np.int64)
        self.table = self.sink_table[1:]
        self._tail: np.ndarray | None = None
        # what the tail's queries are worth, written by whoever attends; for weighted keys alone
        self.queries: QueryPower | None = None
        self._sink: np.ndarray | None = None

    @property
    def n(self) -> int:
        return self.count.n

    @property
    def paged(self) -> int:
        """Tokens behind the sinks."""
        return max(0, self.n - self.type.sink)

    @property
    def in_sink(self) -> bool:
        """Whether the next token is one of the sinks."""
        return self.n < self.type.sink

    @property
    def nbytes(self) -> int:
        """Bytes allocated, tail and sinks included."""
        held = sum(page.nbytes for page in self.pages if page is not None)
        queries = 0 if self.queries is None else self.queries.rows.nbytes
        return held + queries + sum(x.nbytes for x in (self._tail, self._sink) if x is not None)

    def room(self) -> int | None:
        """Tokens that fit before the sinks or the tail are full; other pages of token formats
        have no such end."""
        if self.in_sink:
            return self.type.sink - self.n
        if self.type.tail is None:
            return None
        return self.type.page_tokens - self.paged % self.type.page_tokens

    def open_pages(self, tokens: int) -> None:
        """Make the pages, uint8 [kv_heads, bytes] in `open_format`, that take the next tokens.

        All of them are sinks, which have a page in `sink_format`, or none is.
        """
        kind = self.type
        if self.in_sink:
            if self._sink is None:
                nbytes = kind.sink_format.page_nbytes(kind.sink, self.head_dim)
                self._sink = _aligned((self.kv_heads, nbytes))
                self.sink_table[0] = self._sink.ctypes.data
            return
        nbytes = kind.open_format.page_nbytes(kind.page_tokens, self.head_dim)
        if kind.tail is not None:
            if self._tail is None:
                self._tail = _aligned((self.kv_heads, nbytes))
                if kind.weighs(self.side):
                    self.queries = QueryPower(kind.page_tokens, self.kv_heads, self.head_dim)
            self.table[self.paged // kind.page_tokens] = self._tail.ctypes.data
            return
        while len(self.pages) * kind.page_tokens < self.paged + tokens:
            self._place(_aligned((self.kv_heads, nbytes)))

    def open_page(self, index: int) -> np.ndarray:
        """Page `index`, which is not sealed."""
        if self.type.tail is not None:
            return self.tail
        page = self.pages[index]
        assert page is not None
        return page

    @property
    def sinks(self) -> np.ndarray:
        """The sinks' page, uint8 [kv_heads, bytes] in `sink_format`."""
        assert self._sink is not None, "evicted sinks were read"
        return self._sink

    def _place(self, page: np.ndarray) -> None:
        self.table[len(self.pages)] = page.ctypes.data
        self.pages.append(page)

    @property
    def tail(self) -> np.ndarray:
        """The open page of a page format, uint8 [kv_heads, bytes]."""
        assert self._tail is not None
        return self._tail

    def seal(self, pack: Packer) -> None:
        """Pack the tail if it is full.  Sealed pages never change."""
        kind = self.type
        packed = len(self.pages) * kind.page_tokens
        if kind.tail is None or self.paged - packed < kind.page_tokens:
            return
        nbytes = kind.format.page_nbytes(kind.page_tokens, self.head_dim)
        page = _aligned((self.kv_heads, nbytes))
        pack(self, page)
        self.pages.append(page)

    def page_start(self, token: int) -> int:
        """The first token of the page that holds `token`."""
        sink, size = self.type.sink, self.type.page_tokens
        return 0 if token < sink else sink + (token - sink) // size * size

    def decode(self, start: int) -> np.ndarray:
        """Tokens start..n as float32 [kv_heads, n - start, head_dim]; `start` begins a page."""
        sink, size, parts = self.type.sink, self.type.page_tokens, []
        if start < min(sink, self.n):
            parts.append(self.type.sink_format.decode(self.sinks, self.head_dim, self.side))
        for index in range(max(0, start - sink) // size, -(-self.paged // size)):
            if index < len(self.pages):
                page, stored = self.pages[index], self.type.format
            else:
                page, stored = self._tail, self.type.open_format
            assert page is not None, "an evicted page was read"
            parts.append(stored.decode(page, self.head_dim, self.side))
        if not parts:
            return np.zeros((self.kv_heads, 0, self.head_dim), np.float32)
        return np.concatenate(parts, axis=1)[:, : self.n - start]

    def evict(self, before: int) -> None:
        """Free the pages whose tokens all lie before token `before`."""
        before -= self.type.sink
        if before >= 0:
            self._sink, self.sink_table[0] = None, 0
        for index in range(min(before // self.type.page_tokens, len(self.pages))):
            self.pages[index] = None
            self.table[index] = 0

    def first_held(self) -> int:
        """The first token still present."""
        if self._sink is not None:
            return 0
        held = (i for i, page in enumerate(self.pages) if page is not None)
        return self.type.sink + next(held, len(self.pages)) * self.type.page_tokens

    def boundary(self, n: int) -> int:
        """The longest prefix of at most `n` tokens that can be kept: inside a sealed page the exact
        values are gone, so a page format falls back to the page's start."""
        packed = self.type.sink + len(self.pages) * self.type.page_tokens
        if self.type.tail is None or n < self.type.sink or n >= packed:
            return n
        return self.page_start(n)

    def truncate(self, n: int) -> None:
        """Forget all tokens from `n` on; `n` is a boundary."""
        paged = max(0, n - self.type.sink)
        keep = paged // self.type.page_tokens
        if self.type.tail is None:
            keep = -(-paged // self.type.page_tokens)
        del self.pages[keep:]

    def lay_out(self, evicted: int) -> None:
        """In an empty side, make the pages of the tokens counted, the first `evicted` gone."""
        full, rest = divmod(self.n, self.type.page_tokens)
        nbytes = self.type.format.page_nbytes(self.type.page_tokens, self.head_dim)
        self.pages += [None] * evicted
        for _ in range(full - evicted):
            self._place(_aligned((self.kv_heads, nbytes)))
        if rest:
            self.open_pages(0)


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
        self.k = SideCache("k", types[0], kv_heads, head_dim, n_ctx, self.count)
        self.v = SideCache("v", types[1], kv_heads, head_dim, n_ctx, self.count)
        self.window, self.index, self.n_ctx = window, index, n_ctx

    @property
    def n(self) -> int:
        return self.count.n

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def segments(self, tokens: int) -> Iterator[slice]:
        """Cut `tokens` new tokens where a tail is full; the cache advances between the cuts."""
        start = 0
        while start < tokens:
            rooms = (side.room() for side in (self.k, self.v))
            size = min([tokens - start, *(room for room in rooms if room is not None)])
            yield slice(start, start + size)
            start += size

    def open_pages(self, tokens: int) -> None:
        """Make the pages that take the next tokens."""
        self.k.open_pages(tokens)
        self.v.open_pages(tokens)

    def full(self) -> bool:
        """Whether the last token filled a page of either side."""
        paged = self.k.paged
        sizes = (self.k.type.page_tokens, self.v.type.page_tokens)
        return paged > 0 and any(paged % size == 0 for size in sizes)

    def seal(self, pack: Packer = pack_tail) -> None:
        """Pack full pages."""
        self.k.seal(pack)
        self.v.seal(pack)

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

    `recorded` is what was recorded to run on this cache.
    """

    def __init__(self, layers: list[LayerCache], n_ctx: int) -> None:
        self.layers, self.n_ctx = layers, n_ctx
        self._sinks = [layer.k.type.sink for layer in layers if layer.k.type.sink]
        self.recorded: dict[Any, Any] = {}

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
        for layer in self.layers:
            layer.open_pages(tokens)

    def advance(self, tokens: int) -> None:
        """Count the chunk's tokens, which every layer has appended, among those held."""
        n = int(self.layers[0].count.position[0]) + tokens
        for layer in self.layers:
            layer.count.settle(n)
            layer.evict(n - tokens)

    @property
    def nbytes(self) -> int:
        """Bytes allocated: codes, metadata, tails."""
        return sum(layer.nbytes for layer in self.layers)

    def truncate(self, n: int) -> int:
        """Keep at most the first `n` tokens; returns how many stayed.

        Page formats fall back to a page boundary, and a sliding window that has lost the tokens
        before the cut falls back to nothing.
        """
        sides = [side for layer in self.layers for side in (layer.k, layer.v)]
        n = min([n, *(layer.n for layer in self.layers)])
        while (kept := min((side.boundary(n) for side in sides), default=n)) < n:
            n = kept
        for layer in self.layers:
            held = max(layer.k.first_held(), layer.v.first_held())
            if layer.window is not None and held > max(0, n - layer.window + 1):
                n = 0
        for side in sides:
            side.truncate(n)
        for layer in self.layers:
            layer.count.settle(n)
        return n

    def check_room(self, tokens: int) -> None:
        """Raise InputError if `tokens` more do not fit."""
        if self.n + tokens > self.n_ctx:
            raise InputError(
                f"context full: {self.n} tokens cached and {tokens} more exceed the context of "
                f"{self.n_ctx}; raise -c or shorten the prompt"
            )
