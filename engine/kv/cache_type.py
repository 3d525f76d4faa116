"""How one side of a layer is stored: which format where."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.errors import InputError
from engine.kv.format import PAGE, KVFormat, Side, TokenFormat
from engine.kv.formats import BF16
from engine.kv.formats.floats import BFloat16, Float
from engine.kv.modifiers import PLAIN, Modifiers


@dataclass(frozen=True)
class CacheType:
    """How one side is stored: the packed format, the page length, the tail's format, and what is
    done to keys or values before.

    `tail` is None for tokens that are packed as they arrive.  The first `sink` tokens stay exact.
    Raises InputError for more sinks than a page has tokens.
    """

    format: KVFormat
    page_tokens: int
    tail: TokenFormat | None
    sink: int = 0
    modifiers: Modifiers = PLAIN

    def __post_init__(self) -> None:
        if not 0 <= self.sink <= self.page_tokens:
            raise InputError(
                f"{self.sink} exact first tokens: {self.format.name} takes 0 to {self.page_tokens}"
            )

    @classmethod
    def of(cls, kv_format: KVFormat, sink: int = 0) -> CacheType:
        """The default storage: page formats get a bf16 tail, token formats none."""
        modifiers, plain = kv_format.modifiers, replace(kv_format, modifiers=PLAIN)
        if plain.page_tokens is None:
            return cls(plain, PAGE, None, sink, modifiers)
        return cls(plain, plain.page_tokens, BF16, sink, modifiers)

    @property
    def name(self) -> str:
        """The format's name with its modifiers."""
        return self.format.name + self.modifiers.suffix

    @property
    def open_format(self) -> TokenFormat:
        """The format of the page that is still being filled."""
        if self.tail is not None:
            return self.tail
        assert isinstance(self.format, TokenFormat)
        return self.format

    @property
    def sink_format(self) -> TokenFormat:
        """The format of the sinks: the tail's; what rounds no more than bf16 keeps its own."""
        kind = self.tail or self.format
        return kind if isinstance(kind, Float | BFloat16) else BF16

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
