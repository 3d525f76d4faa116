"""Which layer stores its keys and values how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from engine.errors import InputError
from engine.kv.cache_type import CacheType
from engine.kv.formats import kv_format

Types = tuple[CacheType, CacheType]  # of keys and of values


@dataclass(frozen=True)
class Layers:
    """The first or the last layers, or those of `ranges` (first, last); `said` is how they were
    asked for, in messages."""

    said: str
    first: int = 0
    last: int = 0
    ranges: tuple[tuple[int, int], ...] = ()

    def of(self, n: int) -> list[int]:
        """Which of `n` layers they are.  Raises InputError for layers that there are not."""
        if max(self.first, self.last) > n:
            raise InputError(f"{self.said}: the model has {n} layers; it takes 1 to {n}")
        if any(end >= n for _, end in self.ranges):
            raise InputError(f"{self.said}: the model has {n} layers; it takes 0 to {n - 1}")
        found = [*range(self.first), *range(n - self.last, n)]
        return found + [i for start, end in self.ranges for i in range(start, end + 1)]


@dataclass(frozen=True)
class Override:
    """Other types for some layers; None leaves a side as it is."""

    layers: Layers
    k: CacheType | None = None
    v: CacheType | None = None


@dataclass(frozen=True)
class Policy:
    """The types of all layers: `types`, but for what `overrides` say, the last one winning.

    `name` tells policies apart where results are kept, beside the `source`: the text of the file
    that says it, if one does.
    """

    name: str
    types: Types
    overrides: tuple[Override, ...] = ()
    source: str = ""

    @classmethod
    def of(cls, ctk: str, ctv: str, sink: int = 0) -> Policy:
        """One pair of named types for all layers, the first `sink` tokens exact."""
        k, v = (CacheType.of(kv_format(name), sink) for name in (ctk, ctv))
        return cls(f"{ctk}/{ctv}+sink{sink}" if sink else f"{ctk}/{ctv}", (k, v))

    @classmethod
    def by_layer(cls, pairs: Sequence[Types]) -> Policy:
        """The layers' own pairs, one by one."""
        k, v = (",".join(dict.fromkeys(pair[side].name for pair in pairs)) for side in (0, 1))
        single = (Layers(f"layer {i}", ranges=((i, i),)) for i in range(len(pairs)))
        every = zip(single, pairs, strict=True)
        return cls(f"{k}/{v}", pairs[0], tuple(Override(where, *pair) for where, pair in every))

    @property
    def sink(self) -> int:
        return self.types[0].sink

    @property
    def recent(self) -> int:
        """The longest exact window of any side: float types have none."""
        return max(kind.recent for pair in self.every() for kind in pair)

    def every(self) -> list[Types]:
        """All pairs that may be in use, without regard to layers."""
        k, v = self.types
        return [self.types, *((o.k or k, o.v or v) for o in self.overrides)]

    def of_layers(self, n: int) -> list[Types]:
        """The pair of each of `n` layers.  Raises InputError for layers that there are not."""
        found = [self.types] * n
        for override in self.overrides:
            for i in override.layers.of(n):
                k, v = found[i]
                found[i] = override.k or k, override.v or v
        return found

    def mapped(self, change: Callable[[CacheType], CacheType]) -> Policy:
        """The same with every type changed."""

        def changed(kind: CacheType | None) -> CacheType | None:
            return None if kind is None else change(kind)

        overrides = (replace(o, k=changed(o.k), v=changed(o.v)) for o in self.overrides)
        return replace(
            self, types=(change(self.types[0]), change(self.types[1])), overrides=tuple(overrides)
        )


def by_layer(types: Types | Sequence[Types], n: int) -> Sequence[Types]:
    """The pair of each of `n` layers, from a pair for all of them or from the layers' own."""
    first, second = types[0], types[-1]
    if isinstance(first, CacheType) and isinstance(second, CacheType):
        return [(first, second)] * n
    assert len(types) == n
    return cast("Sequence[Types]", types)
