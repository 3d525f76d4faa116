"""Pages in memory: who holds which tokens, in which bytes.

A `LayerCache` has a key side and a value side, each with its own type and page length.  Tokens of a
token format are written straight into their page; tokens of a page format wait in the *tail*, a
page in a plain format, and are packed the moment the page is full.  So every token reads the packed
form of all earlier pages and the exact form of its own, however the prompt was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.kv.format import PAGE, KVFormat, Side, TokenFormat
from engine.kv.formats import BF16
from engine.kv.queries import QueryPower

_LINE = 64  # bytes: pages start on a cache line


@dataclass(frozen=True)
class CacheType:
    """How one side is stored: the packed format, the page length and the tail's format.

    `tail` is None for tokens that are packed as they arrive.
    """

    format: KVFormat
    page_tokens: int
    tail: TokenFormat | None

    @classmethod
    def of(cls, kv_format: KVFormat) -> CacheType:
        """The default storage: page formats get a bf16 tail, token formats none."""
        if kv_format.page_tokens is None:
            return cls(kv_format, PAGE, None)
        return cls(kv_format, kv_format.page_tokens, BF16)

    @property
    def open_format(self) -> TokenFormat:
        """The format of the page that is still being filled."""
        if self.tail is not None:
            return self.tail
        assert isinstance(self.format, TokenFormat)
        return self.format

    def weighs(self, side: Side) -> bool:
        """Whether an open page needs to know its queries."""
        return side == "k" and self.format.weighted

    def tail_nbytes(self, head_dim: int, side: Side) -> int:
        """Bytes of the open page of a page format for one KV head, its queries' included."""
        assert self.tail is not None
        queries = 4 * self.page_tokens * head_dim if self.weighs(side) else 0
        return self.tail.page_nbytes(self.page_tokens, head_dim) + queries

    def bits_per_value(self, head_dim: int) -> float:
        """Bits per value of a full page, metadata and padding included."""
        return self.format.bits_per_value(self.page_tokens, head_dim)


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
        # addresses of the pages, the open one included; 0 for evicted pages
        self.table = np.zeros(-(-n_ctx // kind.page_tokens), np.int64)
        self._tail: np.ndarray | None = None
        # what the tail's queries are worth, written by whoever attends; for weighted keys alone
        self.queries: QueryPower | None = None

    @property
    def n(self) -> int:
        return self.count.n

    @property
    def nbytes(self) -> int:
        """Bytes allocated, tail included."""
        held = sum(page.nbytes for page in self.pages if page is not None)
        queries = 0 if self.queries is None else self.queries.rows.nbytes
        return held + queries + (0 if self._tail is None else self._tail.nbytes)

    def room(self) -> int | None:
        """Tokens that fit before the tail is full; token formats have no such end."""
        if self.type.tail is None:
            return None
        return self.type.page_tokens - self.n % self.type.page_tokens

    def open_pages(self, tokens: int) -> None:
        """Make the pages, uint8 [kv_heads, bytes] in `open_format`, that take the next tokens."""
        kind = self.type
        nbytes = kind.open_format.page_nbytes(kind.page_tokens, self.head_dim)
        if kind.tail is not None:
            if self._tail is None:
                self._tail = _aligned((self.kv_heads, nbytes))
                if kind.weighs(self.side):
                    self.queries = QueryPower(kind.page_tokens, self.kv_heads, self.head_dim)
            self.table[self.n // kind.page_tokens] = self._tail.ctypes.data
            return
        while len(self.pages) * kind.page_tokens < self.n + tokens:
            self._place(_aligned((self.kv_heads, nbytes)))

    def open_page(self, index: int) -> np.ndarray:
        """Page `index`, which is not sealed."""
        if self.type.tail is not None:
            return self.tail
        page = self.pages[index]
        assert page is not None
        return page

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
        if kind.tail is None or self.n - packed < kind.page_tokens:
            return
        nbytes = kind.format.page_nbytes(kind.page_tokens, self.head_dim)
        page = _aligned((self.kv_heads, nbytes))
        pack(self, page)
        self.pages.append(page)

    def decode(self, start: int) -> np.ndarray:
        """Tokens start..n as float32 [kv_heads, n - start, head_dim]; `start` begins a page."""
        size, parts = self.type.page_tokens, []
        for index in range(start // size, -(-self.n // size)):
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
        for index in range(min(before // self.type.page_tokens, len(self.pages))):
            self.pages[index] = None
            self.table[index] = 0

    def first_held(self) -> int:
        """The first token still present."""
        held = (i for i, page in enumerate(self.pages) if page is not None)
        return next(held, len(self.pages)) * self.type.page_tokens

    def boundary(self, n: int) -> int:
        """The longest prefix of at most `n` tokens that can be kept: inside a sealed page the exact
        values are gone, so a page format falls back to the page's start."""
        packed = len(self.pages) * self.type.page_tokens
        if self.type.tail is None or n >= packed:
            return n
        return n // self.type.page_tokens * self.type.page_tokens

    def truncate(self, n: int) -> None:
        """Forget all tokens from `n` on; `n` is a boundary."""
        keep = n // self.type.page_tokens
        if self.type.tail is None:
            keep = -(-n // self.type.page_tokens)
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
        sizes = (self.k.type.page_tokens, self.v.type.page_tokens)
        return self.n > 0 and any(self.n % size == 0 for size in sizes)

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
        self.recorded: dict[Any, Any] = {}

    @property
    def n(self) -> int:
        """Tokens held."""
        return self.layers[0].n

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
