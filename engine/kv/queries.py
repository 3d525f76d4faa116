"""What the queries of an open page are worth to each channel of its keys."""

from __future__ import annotations

import numpy as np

LARGEST = np.finfo(np.float32).max


class QueryPower:
    """Mean squares of the queries, a row per token of the open pages, for keys of a `weighted`
    format.

    `rows` float32 [tokens, kv_heads, D] holds the mean over the query heads of a KV head's group.
    Token t behind the sinks owns row t mod `tokens`, those of whole pages, so going back and on
    inside a page writes the same rows again.  A token that nobody attended from counts 1
    everywhere.
    """

    def __init__(self, tokens: int, kv_heads: int, head_dim: int) -> None:
        self.rows = np.ones((tokens, kv_heads, head_dim), np.float32)

    @classmethod
    def alike(cls, squares: np.ndarray, tokens: int) -> QueryPower:
        """As if each of `tokens` tokens had the mean squares float32 [kv_heads, D]."""
        found = cls(0, *squares.shape)
        found.rows = np.broadcast_to(np.ascontiguousarray(squares), (tokens, *squares.shape))
        return found

    def page(self, index: int, tokens: int) -> QueryPower:
        """Those of page `index`, whose rows stay shared."""
        found = QueryPower(0, *self.rows.shape[1:])
        found.rows = self.page_rows(index, tokens)
        return found

    def page_rows(self, index: int, tokens: int) -> np.ndarray:
        """The rows of page `index`."""
        start = index * tokens % len(self.rows)
        return self.rows[start : start + tokens]

    def write(self, start: int, q: np.ndarray) -> None:
        """Fill the rows of q float32 [T, heads, D], whose first token is token `start`.

        The squares are added in the order of the heads, which backends keep.
        """
        tokens, heads, dim = q.shape
        kv_heads = self.rows.shape[1]
        squares = np.square(q).reshape(tokens, kv_heads, heads // kv_heads, dim)
        total = squares[:, :, 0]
        for g in range(1, squares.shape[2]):
            total = total + squares[:, :, g]
        mean = total / np.float32(squares.shape[2])
        self.rows[self.places(range(start, start + tokens))] = np.minimum(mean, LARGEST)

    def places(self, tokens: range) -> np.ndarray:
        """Which rows these tokens own, int64 [n]."""
        return np.arange(tokens.start, tokens.stop) % len(self.rows)

    def weights(self) -> np.ndarray:
        """Their RMS over the tokens, float32 [kv_heads, D], added up in float64 in order."""
        total = np.zeros(self.rows.shape[1:])
        for row in self.rows:
            total += row
        return np.sqrt(total / len(self.rows)).astype(np.float32)
