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

    `tail` is None for tokens that are packed as they arrive.  The first `sink` tokens stay exact,
    and a page is packed when `recent` tokens stand behind it, so at least so many of the newest
    are in the tail.  `small` is what the oldest pages are packed into when a budget is full, None
    if they stay.  Raises InputError for more sinks than a page has tokens, a negative `recent`, and
    one without a tail, or small pages of another length.
    """

    format: KVFormat
    page_tokens: int
    tail: TokenFormat | None
    sink: int = 0
    modifiers: Modifiers = PLAIN
    recent: int = 0
    small: KVFormat | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sink <= self.page_tokens:
            raise InputError(
                f"{self.sink} exact first tokens: {self.format.name} takes 0 to {self.page_tokens}"
            )
        if self.recent < 0 or (self.recent and self.tail is None):
            raise InputError(f"{self.recent} exact newest tokens: they need a tail, and 0 or more")
        small = self.small
        if small is not None and small.page_tokens not in (None, self.page_tokens):
            raise InputError(
                f"{small.name}: its pages have {small.page_tokens} tokens, those of "
                f"{self.format.name} {self.page_tokens}"
            )

    @classmethod
    def of(
        cls, kv_format: KVFormat, sink: int = 0, tail: TokenFormat = BF16, recent: int = 0
    ) -> CacheType:
        """The usual storage: page formats get a tail, token formats one if `recent` tokens are to
        be exact, and float formats, which are exact themselves, none."""
        modifiers, plain = kv_format.modifiers, replace(kv_format, modifiers=PLAIN)
        size = plain.page_tokens or PAGE
        if plain.page_tokens is None and (not recent or isinstance(plain, Float | BFloat16)):
            return cls(plain, size, None, sink, modifiers)
        return cls(plain, size, tail, sink, modifiers, recent)

    def within(self, span: int) -> CacheType:
        """The same where no query sees further back than `span` tokens."""
        return replace(self, recent=min(self.recent, span))

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

    @property
    def limit(self) -> float:
        """The largest magnitude whose stored form is surely finite, now and in a smaller type."""
        limit = self.open_format.limit
        return min(limit, self.small.limit) if isinstance(self.small, TokenFormat) else limit

    @property
    def tail_pages(self) -> int:
        """The most pages that wait in the tail at once."""
        return 1 + -(-self.recent // self.page_tokens)

    def sealed(self, paged: int) -> int:
        """How many full pages do not wait in a tail when there are `paged` tokens behind the
        sinks."""
        return max(0, paged - self.recent) // self.page_tokens

    def weighs(self, side: Side) -> bool:
        """Whether an open page needs to know its queries."""
        return side == "k" and self.format.weighted

    def tail_nbytes(self, head_dim: int, side: Side, paged: int) -> int:
        """Bytes of the tail for one KV head with `paged` tokens behind the sinks, its queries'
        included."""
        assert self.tail is not None
        pages = min(self.tail_pages, -(-paged // self.page_tokens))
        queries = 4 * self.tail_pages * self.page_tokens * head_dim
        weighed = queries if paged and self.weighs(side) else 0
        return pages * self.tail.page_nbytes(self.page_tokens, head_dim) + weighed

    def bits_per_value(self, head_dim: int) -> float:
        """Bits per value of a full page, metadata and padding included."""
        return self.format.bits_per_value(self.page_tokens, head_dim)
