"""What a file holds of one side of a layer: in which formats, in which order, from which memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.kv.cache_type import CacheType
from engine.kv.format import KVFormat, TokenFormat
from engine.kv.modifiers import PLAIN
from engine.kv.side_cache import SideCache

FindFormat = Callable[[str, int], Any]  # by name and layout


@dataclass(frozen=True)
class StoredSide:
    """A side's type, how many of its pages are evicted, and whether its sinks are, how many of its
    oldest pages are small, and the exact window that was asked for: the context may be shorter."""

    type: CacheType
    evicted: int
    sinks_evicted: bool
    shrunk: int
    recent: int

    @property
    def asked(self) -> CacheType:
        """The type with that window."""
        return replace(self.type, recent=self.recent)

    @classmethod
    def of(cls, side: SideCache) -> StoredSide:
        evicted = sum(page is None for page in side.pages)
        return cls(side.type, evicted, side.sinks_evicted, int(side.shrunk[0]), side.recent)

    def entry(self) -> dict[str, Any]:
        """The side's part of a header, JSON."""
        kind = self.type
        return {
            "type": kind.name,
            "layout": kind.format.layout,
            "page_tokens": kind.page_tokens,
            "tail": kind.tail and kind.tail.name,
            "tail_layout": kind.tail and kind.tail.layout,
            "evicted": self.evicted,
            "sink": kind.sink,
            "sinks_evicted": self.sinks_evicted,
            "recent": kind.recent,
            "recent_asked": self.recent,
            "small": kind.small and kind.small.name,
            "small_layout": kind.small and kind.small.layout,
            "shrunk": self.shrunk,
        }

    @classmethod
    def read(
        cls, entry: Mapping[str, Any], n: int, window: int | None, find: FindFormat
    ) -> StoredSide:
        """What `entry` made, of a side with `n` tokens.  Raises ValueError and the like for what it
        cannot have made."""
        tail = entry["tail"] and find(entry["tail"], entry["tail_layout"])
        found = find(entry["type"], entry["layout"])
        plain = replace(found, modifiers=PLAIN)
        # the first version knew no sinks, no windows and no small pages
        size = count(entry["page_tokens"])
        sink, recent, shrunk = (count(entry.get(name, 0)) for name in ("sink", "recent", "shrunk"))
        small = entry.get("small") and find(entry["small"], entry["small_layout"])
        kind = CacheType(plain, size, tail, sink, found.modifiers, recent, small)
        sinks_evicted = flag(entry.get("sinks_evicted", False))
        asked = count(entry.get("recent_asked", recent))
        stored = cls(kind, count(entry["evicted"]), sinks_evicted, shrunk, asked)
        own = kind.format.page_tokens
        if not (
            isinstance(kind.tail or kind.format, TokenFormat)
            and kind.page_tokens == (own or kind.page_tokens) > 0
        ):
            raise ValueError(entry)
        if asked < recent:
            raise ValueError("a window longer than the one asked for")
        if shrunk > (0 if small is None else kind.sealed(n - sink)):
            raise ValueError("small pages that are not there")
        lost = sink * stored.sinks_evicted + stored.evicted * size
        around = sink > 0 and stored.evicted > 0 and not stored.sinks_evicted
        if around or lost > (0 if window is None else max(0, n - count(window) + 1)):
            raise ValueError("pages are missing")
        return stored

    def forms(self, n: int) -> list[tuple[KVFormat, int]]:
        """Formats and tokens of all that is held of `n` tokens: sinks, packed pages, open ones."""
        kind, forms = self.type, list[tuple[KVFormat, int]]()
        if kind.sink and n and not self.sinks_evicted:
            forms.append((kind.sink_format, min(n, kind.sink)))
        size, tokens = kind.page_tokens, self.open_tokens(n)
        for index in range(self.evicted, tokens.start // size):
            small = kind.small if index < self.shrunk else None
            forms.append((small or kind.format, size))
        return forms + [(kind.open_format, min(size, tokens.stop - i)) for i in tokens[::size]]

    def open_tokens(self, n: int) -> range:
        """Those of `n` tokens, counted behind the sinks, that are in open pages."""
        paged = max(0, n - self.type.sink)
        return range(self.type.sealed(paged) * self.type.page_tokens, paged)

    def queries_nbytes(self, side: SideCache, n: int) -> int:
        """Bytes of what the queries of open pages weigh."""
        if not self.type.weighs(side.side):
            return 0
        return 4 * len(self.open_tokens(n)) * side.kv_heads * side.head_dim

    def nbytes(self, side: SideCache, n: int) -> int:
        """Bytes of all that is held of `n` tokens."""
        forms = self.forms(n)
        packed = side.kv_heads * sum(f.page_nbytes(tokens, side.head_dim) for f, tokens in forms)
        return packed + self.queries_nbytes(side, n)


def views(side: SideCache) -> Iterator[np.ndarray]:
    """The memory of all that `StoredSide.forms` lists, uint8 [kv_heads, bytes in use]."""
    kind, dim = side.type, side.head_dim
    if kind.sink and side.n and not side.sinks_evicted:
        used = kind.sink_format.page_nbytes(min(side.n, kind.sink), dim)
        yield side.sinks[:, :used]
    size, tokens = kind.page_tokens, StoredSide.of(side).open_tokens(side.n)
    for page in side.pages[: tokens.start // size]:
        if page is not None:
            yield page
    for start in tokens[::size]:
        used = kind.open_format.page_nbytes(min(size, tokens.stop - start), dim)
        yield side.open_page(start // size)[:, :used]


def count(value: Any) -> int:
    """`value` if it counts something, else ValueError."""
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def flag(value: Any) -> bool:
    """`value` if it is true or false, else ValueError."""
    if type(value) is not bool:
        raise ValueError(value)
    return value
