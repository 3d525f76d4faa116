"""Pages in memory: who holds which tokens, in which bytes.

A `SideCache` is the keys or the values of one layer.  Tokens of a token format are written straight
into their page; tokens of a page format wait in the *tail*, a page in a plain format, and are
packed the moment the page is full.  Where the newest R tokens are to be exact, for token formats
too, the tail has more pages, and one is packed when R tokens stand behind it.

The first tokens of a sequence, its *sinks*, may stay exact: they have a page of their own, which is
never packed, and page i then begins at token sink + i P.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.kv.cache_type import CacheType
from engine.kv.format import KVFormat, Side
from engine.kv.queries import QueryPower
from engine.kv.tail import Tail, aligned
from engine.memory import address


class Count:
    """Tokens held: `position` int64 [1], those before the chunk that is being processed, which
    recorded programs read when they run, and the chunk's that are already `pending` here."""

    def __init__(self, position: np.ndarray) -> None:
        self.position, self.pending = position, 0

    @property
    def n(self) -> int:
        return self.position.item() + self.pending

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
    """Pack a full page of the tail uint8 [kv_heads, bytes] into `page` uint8 [kv_heads, bytes]."""
    assert kind.tail is not None
    weights = None if queries is None else queries.weights()
    page[:] = kind.format.encode(kind.tail.decode(tail, head_dim, side), side, weights)


def pack_tail(side: SideCache, page: np.ndarray) -> None:
    """Pack the oldest page of the side's tail into `page` and put this in its place.

    A backend may have something to the same effect.
    """
    encode_tail(side.type, side.tail, side.side, side.head_dim, page, side.tail_queries)
    side.table[len(side.pages)] = address(page)


def encode_small(side: SideCache, page: np.ndarray, small: np.ndarray) -> None:
    """Pack what the side's `page` holds into `small`, both uint8 [kv_heads, bytes]."""
    assert side.type.small is not None
    values, queries = (
        side.type.format.decode(page, side.head_dim, side.side),
        page_queries(side, page),
    )
    weights = None if queries is None else queries.weights()
    small[:] = side.type.small.encode(values, side.side, weights)


def page_queries(side: SideCache, page: np.ndarray) -> QueryPower | None:
    """What the side's packed `page` tells of its queries, if the smaller type weighs keys."""
    kind, squares = side.type, None
    if kind.small is not None and kind.small.weighted and side.side == "k":
        squares = kind.format.power(page, side.head_dim, side.side)
    return None if squares is None else QueryPower.alike(squares, kind.page_tokens)


Packer = Callable[["SideCache", np.ndarray], None]
Repacker = Callable[["SideCache", np.ndarray, np.ndarray], None]


class SideCache:
    """Keys or values of one layer: pages uint8 [kv_heads, bytes], `n` tokens of which are
    filled.

    `type` has no longer an exact window than `n_ctx` and `window`, the layer's, let a query see;
    `recent` is the one that was asked for.
    """

    def __init__(
        self,
        side: Side,
        kind: CacheType,
        kv_heads: int,
        head_dim: int,
        n_ctx: int,
        count: Count,
        window: int | None = None,
    ) -> None:
        self.side: Side = side
        self.recent = kind.recent
        kind = kind.within(n_ctx if window is None else min(n_ctx, window))
        self.type, self.kv_heads, self.head_dim = kind, kv_heads, head_dim
        self.count = count
        # pages in the packed format, open one included if there is no tail; None once evicted
        self.pages: list[np.ndarray | None] = []
        # addresses of the sinks' page and, `table`, of the pages, open ones included; 0 for
        # evicted pages
        self.sink_table = np.zeros(1 + -(-n_ctx // kind.page_tokens), np.int64)
        self.table = self.sink_table[1:]
        # how many of the oldest pages are in the smaller type; recorded programs read it, too
        self.shrunk = np.zeros(1, np.int64)
        self._tail = Tail(kind, side, kv_heads, head_dim)
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
        return held + self._tail.nbytes + (0 if self._sink is None else self._sink.nbytes)

    def room(self, every_page: bool) -> int | None:
        """Tokens that fit before the sinks are full or a page of the tail is to be packed; pages of
        token formats without a tail have such an end if `every_page` has."""
        kind = self.type
        if self.in_sink:
            return kind.sink - self.n
        if kind.tail is None and every_page:
            return kind.page_tokens - self.paged % kind.page_tokens
        if kind.tail is None:
            return None
        return (len(self.pages) + 1) * kind.page_tokens + kind.recent - self.paged

    def ends(self, tokens: int) -> range:
        """After how many of the next `tokens` tokens, none of them a sink, pages of the tail are to
        be packed, the last token left out."""
        first = self.room(False)
        return range(0) if first is None else range(first, tokens, self.type.page_tokens)

    def open_pages(self, tokens: int) -> None:
        """Make the pages, uint8 [kv_heads, bytes] in `open_format`, that take the next tokens,
        which fill all of them but the last: all these tokens are to be written or none counted.

        All of them are sinks, which have a page in `sink_format`, or none is.
        """
        kind = self.type
        if self.in_sink:
            self._open_sinks()
            return
        if kind.tail is not None:
            self.open_tail(self.paged // kind.page_tokens, self.paged + tokens)
            return
        nbytes = kind.open_format.page_nbytes(kind.page_tokens, self.head_dim)
        left = self.paged + tokens - len(self.pages) * kind.page_tokens
        while left > 0:
            # whole vectors are read, behind the last token of an open page too
            self._place(aligned((self.kv_heads, nbytes), zeroed=left < kind.page_tokens))
            left -= kind.page_tokens

    def open_tail(self, first: int, paged: int) -> None:
        """Let the tail have the pages from `first` on that `paged` tokens take."""
        for index in range(first, -(-paged // self.type.page_tokens)):
            self.table[index] = address(self._tail.open(index))

    def _open_sinks(self) -> None:
        if self._sink is None:
            nbytes = self.type.sink_format.page_nbytes(self.type.sink, self.head_dim)
            self._sink = aligned((self.kv_heads, nbytes))
            self.sink_table[0] = address(self._sink)

    def next_change(self) -> int:
        """The least number of tokens, none that are held left out, with which a page begins, is to
        be packed or lets others be evicted."""
        kind, n = self.type, self.n
        starts = 0, kind.sink, kind.sink + kind.recent
        return min(n + (start - n) % kind.page_tokens for start in starts)

    def open_page(self, index: int) -> np.ndarray:
        """Page `index`, which is not sealed."""
        if self.type.tail is not None:
            return self._tail[index]
        page = self.pages[index]
        assert page is not None
        return page

    @property
    def sinks(self) -> np.ndarray:
        """The sinks' page, uint8 [kv_heads, bytes] in `sink_format`."""
        assert self._sink is not None, "evicted sinks were read"
        return self._sink

    @property
    def sinks_evicted(self) -> bool:
        """Whether there were sinks and a window has left them behind."""
        return self._sink is None and self.type.sink > 0 and self.n > 0

    def _place(self, page: np.ndarray) -> None:
        self.table[len(self.pages)] = address(page)
        self.pages.append(page)

    @property
    def tail(self) -> np.ndarray:
        """The oldest page of the tail, uint8 [kv_heads, bytes]."""
        return self._tail[len(self.pages)]

    @property
    def queries(self) -> QueryPower | None:
        """What the tail's queries are worth; for weighted keys alone."""
        return self._tail.queries

    @property
    def tail_queries(self) -> QueryPower | None:
        """The same for the oldest page of the tail."""
        every = self.queries
        return None if every is None else every.page(len(self.pages), self.type.page_tokens)

    def query_rows(self, pages: range) -> list[np.ndarray]:
        """Its rows float32 [P, kv_heads, D] for these pages of the tail; empty without any."""
        every, size = self.queries, self.type.page_tokens
        return [] if every is None else [every.page_rows(index, size) for index in pages]

    def due(self, every_page: bool) -> bool:
        """Whether a page of the tail is to be packed; with `every_page`, whether a page of a token
        format has just become full, too."""
        if self.type.tail is None:
            return every_page and self.paged > 0 and self.paged % self.type.page_tokens == 0
        return self.room(every_page) == 0

    def seal(self, pack: Packer) -> None:
        """Pack the oldest page of the tail if it is time.  Sealed pages never change."""
        if not self.due(False):
            return
        page = self._new_page()
        pack(self, page)
        self.pages.append(page)

    def _new_page(self) -> np.ndarray:
        nbytes = self.type.format.page_nbytes(self.type.page_tokens, self.head_dim)
        return aligned((self.kv_heads, nbytes), zeroed=False)

    def new_pages(self, count: int) -> list[np.ndarray]:
        """Make the pages that the oldest `count` pages of the tail are to be packed into."""
        pages = [self._new_page() for _ in range(count)]
        for page in pages:
            self._place(page)
        return pages

    def form(self, index: int) -> KVFormat:
        """What page `index` is packed in, if it is not the tail."""
        small = self.type.small
        return small if small is not None and index < self.shrunk[0] else self.type.format

    def shrink(self, pages: int, repack: Repacker = encode_small) -> None:
        """Let the oldest `pages` pages be in the smaller type.  A page is repacked once."""
        for index in range(int(self.shrunk[0]), pages):
            if self.pages[index] is not None:
                self._shrink_page(index, repack)
            self.shrunk[0] = index + 1

    def _shrink_page(self, index: int, repack: Repacker) -> None:
        page, small = self.pages[index], self.type.small
        assert page is not None and small is not None
        new = aligned((self.kv_heads, small.page_nbytes(self.type.page_tokens, self.head_dim)))
        repack(self, page, new)
        place, shrunk = address(new), index + 1
        # plain stores, between which no interruption falls
        self.pages[index] = new
        self.table[index] = place
        self.shrunk[0] = shrunk

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
                page, stored = self.pages[index], self.form(index)
            else:
                page, stored = self._tail[index], self.type.open_format
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
        """The longest prefix of at most `n` tokens that can be kept.

        Where packed pages would have to be exact again the values are gone: that is inside a page,
        so a page format falls back to its start, or with `recent` anywhere before, so that nothing
        but the sinks can be kept.  Pages of token formats without a tail fall back when they have
        become smaller.
        """
        kind, paged = self.type, n - self.type.sink
        if paged <= 0:
            return n
        if kind.tail is None:
            return n if paged >= self.shrunk[0] * kind.page_tokens else self.page_start(n)
        # pages that have been packed may still be in the tail's memory
        if all(map(self._tail.holds, range(kind.sealed(paged), -(-paged // kind.page_tokens)))):
            return n
        return kind.sink if kind.recent else self.page_start(n)

    def truncate(self, n: int) -> None:
        """Forget all tokens from `n` on; `n` is a boundary."""
        paged = max(0, n - self.type.sink)
        if self.type.tail is None:
            del self.pages[-(-paged // self.type.page_tokens) :]
        else:
            del self.pages[self.type.sealed(paged) :]
            self.open_tail(len(self.pages), paged)
        self.shrunk[0] = min(self.shrunk[0], len(self.pages))

    def lay_out(self, evicted: int, sinks_evicted: bool, shrunk: int) -> None:
        """In an empty side, make the pages of the tokens counted, the first `evicted` gone and the
        first `shrunk` small."""
        kind = self.type
        if self.n and kind.sink and not sinks_evicted:
            self._open_sinks()
        self.pages += [None] * evicted
        self.shrunk[0] = shrunk
        for index in range(evicted, kind.sealed(self.paged)):
            nbytes = self.form(index).page_nbytes(kind.page_tokens, self.head_dim)
            self._place(aligned((self.kv_heads, nbytes)))
        if kind.tail is not None:
            self.open_tail(len(self.pages), self.paged)
        elif self.paged:
            self.open_pages(0)
