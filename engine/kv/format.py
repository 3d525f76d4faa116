"""What a KV cache format is: bytes for a page of one (layer, KV head, side)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["k", "v"]
PAGE = 128  # tokens per page: range metadata costs 32/128 bits per value


@dataclass(frozen=True, kw_only=True)
class KVFormat(ABC):
    """One storage type of keys or values.

    `page_tokens` is None for token formats, which quantize each token by itself and are written as
    the token arrives into pages of any length.  Page formats share statistics between the tokens of
    a page: their tokens wait in a tail until the page is full.
    """

    name: str
    page_tokens: int | None = None

    @abstractmethod
    def page_nbytes(self, tokens: int, head_dim: int) -> int:
        """Bytes of a page of `tokens` tokens for one KV head, metadata and padding included."""

    @abstractmethod
    def encode(self, x: np.ndarray, side: Side) -> np.ndarray:
        """Pack float32 x [..., tokens, head_dim] into uint8 [..., page_nbytes]."""

    @abstractmethod
    def decode(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray:
        """The float32 [..., tokens, head_dim] that uint8 `page` [..., page_nbytes] stands for."""

    def bits_per_value(self, tokens: int, head_dim: int) -> float:
        return 8 * self.page_nbytes(tokens, head_dim) / (tokens * head_dim)


@dataclass(frozen=True, kw_only=True)
class TokenFormat(KVFormat):
    """A ggml block type: a page is its tokens' rows, one after another.

    `limit` is the largest magnitude whose stored form is surely finite.
    """

    block: int
    block_nbytes: int
    limit: float

    def row_nbytes(self, head_dim: int) -> int:
        """Bytes of one token of one head; the last block is padded with zeros."""
        return -(-head_dim // self.block) * self.block_nbytes

    def page_nbytes(self, tokens: int, head_dim: int) -> int:
        return tokens * self.row_nbytes(head_dim)

    @abstractmethod
    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        """uint8 [..., block_nbytes] from float32 [..., block]."""

    @abstractmethod
    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        """float32 [..., block] from uint8 [..., block_nbytes]."""

    def encode(self, x: np.ndarray, side: Side) -> np.ndarray:
        *lead, tokens, dim = x.shape
        blocks = -(-dim // self.block)
        padded = np.zeros((*lead, tokens, blocks * self.block), np.float32)
        padded[..., :dim] = x
        packed = self.encode_blocks(padded.reshape(*lead, tokens, blocks, self.block))
        return packed.reshape(*lead, tokens * blocks * self.block_nbytes)

    def decode(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray:
        blocks = -(-head_dim // self.block)
        packed = page.reshape(*page.shape[:-1], -1, blocks, self.block_nbytes)
        x = self.decode_blocks(packed)
        return x.reshape(*x.shape[:-2], blocks * self.block)[..., :head_dim]
