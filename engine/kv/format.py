"""What a KV cache format is: bytes for a page of one (layer, KV head, side)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from engine.kv.modifiers import PLAIN, Modifiers

Side = Literal["k", "v"]
PAGE = 128  # tokens per page: range metadata costs 32/128 bits per value


@dataclass(frozen=True, kw_only=True)
class KVFormat(ABC):
    """One storage type of keys or values.

    `layout` is the version of the bytes: pages saved in another one cannot be read.
    `page_tokens` is None for token formats, which quantize each token by itself and are written as
    the token arrives into pages of any length.  Page formats share statistics between the tokens of
    a page: their tokens wait in a tail until the page is full.  A `weighted` format packs keys
    better when it is told what their channels are worth.  `modifiers` are those asked for with the
    type; they are not part of its bytes, and `CacheType.of` takes them over.
    """

    name: str
    page_tokens: int | None = None
    weighted: bool = False
    modifiers: Modifiers = PLAIN

    @abstractmethod
    def page_nbytes(self, tokens: int, head_dim: int) -> int:
        """Bytes of a page of `tokens` tokens for one KV head, metadata and padding included."""

    @abstractmethod
    def encode(self, x: np.ndarray, side: Side, weights: np.ndarray | None = None) -> np.ndarray:
        """Pack float32 x [..., tokens, head_dim] into uint8 [..., page_nbytes].

        `weights` float32 [..., head_dim] >= 0, for keys in a `weighted` format: the RMS of the
        page's queries in each channel; None for ones.
        """

    @abstractmethod
    def decode(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray:
        """The float32 [..., tokens, head_dim] that uint8 `page` [..., page_nbytes] stands for."""

    def power(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray | None:
        """What a packed page tells of its queries: their mean squares per channel but for a factor,
        float32 [..., head_dim]; None if it tells nothing."""
        return None

    layout: ClassVar[int] = 1

    def by_channel(self, side: Side) -> bool:
        """Whether tokens share a channel's range, so that it matters which channel is which."""
        return self.page_tokens is not None

    def bits_per_value(self, tokens: int, head_dim: int) -> float:
        return 8 * self.page_nbytes(tokens, head_dim) / (tokens * head_dim)


@dataclass(frozen=True, kw_only=True)
class TokenFormat(KVFormat):
    """Every token by itself: a page is its tokens' rows, one after another.

    A row is padded with zeros to a multiple of `block` channels.  `limit` is the largest magnitude
    whose stored form is surely finite.
    """

    block: int
    limit: float

    @abstractmethod
    def row_nbytes(self, head_dim: int) -> int:
        """Bytes of one token of one head, padding included."""

    @abstractmethod
    def encode_rows(self, x: np.ndarray) -> np.ndarray:
        """uint8 [..., row_nbytes] from float32 [..., channels], a multiple of `block`."""

    @abstractmethod
    def decode_rows(self, data: np.ndarray, channels: int) -> np.ndarray:
        """float32 [..., channels] from uint8 [..., row_nbytes]."""

    def channels(self, head_dim: int) -> int:
        """`head_dim` with its padding."""
        return -(-head_dim // self.block) * self.block

    def page_nbytes(self, tokens: int, head_dim: int) -> int:
        return tokens * self.row_nbytes(head_dim)

    def encode(self, x: np.ndarray, side: Side, weights: np.ndarray | None = None) -> np.ndarray:
        *lead, tokens, dim = x.shape
        padded = np.zeros((*lead, tokens, self.channels(dim)), np.float32)
        padded[..., :dim] = x
        return self.encode_rows(padded).reshape(*lead, tokens * self.row_nbytes(dim))

    def decode(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray:
        rows = page.reshape(*page.shape[:-1], -1, self.row_nbytes(head_dim))
        return self.decode_rows(rows, self.channels(head_dim))[..., :head_dim]


@dataclass(frozen=True, kw_only=True)
class BlockFormat(TokenFormat):
    """A ggml block type: `block` channels make `block_nbytes` bytes, whatever their neighbours."""

    block_nbytes: int

    @abstractmethod
    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        """uint8 [..., block_nbytes] from float32 [..., block]."""

    @abstractmethod
    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        """float32 [..., block] from uint8 [..., block_nbytes]."""

    def row_nbytes(self, head_dim: int) -> int:
        return -(-head_dim // self.block) * self.block_nbytes

    def encode_rows(self, x: np.ndarray) -> np.ndarray:
        *lead, channels = x.shape
        blocks = self.encode_blocks(x.reshape(*lead, channels // self.block, self.block))
        return blocks.reshape(*lead, -1)

    def decode_rows(self, data: np.ndarray, channels: int) -> np.ndarray:
        blocks = channels // self.block
        packed = data.reshape(*data.shape[:-1], blocks, self.block_nbytes)
        return self.decode_blocks(packed).reshape(*data.shape[:-1], channels)
