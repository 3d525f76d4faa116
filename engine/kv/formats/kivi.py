"""kivi{b} and kivi{b}-g64, b = 2..4: keys by channel, values by token, in groups of G = 32 or 64.

The types of KIVI (Liu et al. 2024).  A page of one KV head, P tokens, D = head_dim rounded up to 16
channels (padding channels hold code 0):

    | codes as in `engine.kv.formats.channels`: P D b / 8 bytes
    | for every group: m f16 [n] | s f16 [n] |                           layout version 1

    K: groups of G tokens, n = D: x[t, d] = m[g, d] + s[g, d] code[t, d], g = t div G
    V: groups of G channels, n = P: x[t, d] = m[g, t] + s[g, t] code[t, d], g = d div G

The last group may be shorter, and zeros fill up the side that needs fewer groups.

    m = min x,  s = (max x - m) / (2^b - 1)      over the group's tokens, or its channels

m and s are rounded to float16 *before* the codes are chosen.  What float16 cannot hold saturates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bits import STEP_CODES, pack_steps, unpack_steps
from engine.kv.format import PAGE, KVFormat, Side
from engine.kv.formats.channels import from_steps, padded_dim, to_steps
from engine.kv.formats.floats import F16_MAX
from engine.kv.formats.scales import asymmetric, encode_codes


@dataclass(frozen=True, kw_only=True)
class KiviFormat(KVFormat):
    """`bits` per code, a range for every `group` values."""

    bits: int
    group: int
    page_tokens: int = PAGE

    def codes_nbytes(self, tokens: int, head_dim: int) -> int:
        return tokens * padded_dim(head_dim) * self.bits // 8

    def page_nbytes(self, tokens: int, head_dim: int) -> int:
        k = -(-tokens // self.group) * padded_dim(head_dim)
        v = -(-head_dim // self.group) * tokens
        return self.codes_nbytes(tokens, head_dim) + 4 * max(k, v)

    def by_channel(self, side: Side) -> bool:
        return side == "k"

    def encode(self, x: np.ndarray, side: Side, weights: np.ndarray | None = None) -> np.ndarray:
        *lead, tokens, dim = x.shape
        rows = _rows(np.clip(x, -F16_MAX, F16_MAX), side)
        codes = np.zeros((*lead, tokens, padded_dim(dim)), np.uint8)
        lines = _rows(codes[..., :dim], side)
        ranges = np.zeros((*lead, *self._ranges_shape(tokens, dim, side)), np.float16)
        for g, start in enumerate(range(0, rows.shape[-2], self.group)):
            part = rows[..., start : start + self.group, :]
            m, s = asymmetric(part, self.bits, axis=-2)
            lines[..., start : start + self.group, :] = encode_codes(part, m, s, self.bits)
            ranges[..., g, :, : part.shape[-1]] = np.concatenate([m, s], axis=-2)
        page = np.zeros((*lead, self.page_nbytes(tokens, dim)), np.uint8)
        end = self.codes_nbytes(tokens, dim)
        page[..., :end] = pack_steps(to_steps(codes, side), self.bits)
        stored = ranges.reshape(*lead, -1).view(np.uint8)
        page[..., end : end + stored.shape[-1]] = stored
        return page

    def decode(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray:
        tokens, wide, lead = self.page_tokens, padded_dim(head_dim), page.shape[:-1]
        end, shape = self.codes_nbytes(tokens, head_dim), self._ranges_shape(tokens, head_dim, side)
        steps = tokens * wide // STEP_CODES
        steps = unpack_steps(page[..., :end], self.bits, steps, STEP_CODES)
        codes = from_steps(steps, tokens, wide, side)[..., :head_dim]
        stored = np.ascontiguousarray(page[..., end : end + 2 * np.prod(shape)])
        ranges = stored.view(np.float16).reshape(*lead, *shape).astype(np.float32)
        rows = _rows(codes, side).astype(np.float32)
        group = np.arange(rows.shape[-2]) // self.group
        m, s = (ranges[..., group, i, : rows.shape[-1]] for i in (0, 1))
        return np.ascontiguousarray(_rows(m + s * rows, side))

    def _ranges_shape(self, tokens: int, head_dim: int, side: Side) -> tuple[int, int, int]:
        """Groups, m and s, ranges of a group."""
        if side == "k":
            return -(-tokens // self.group), 2, padded_dim(head_dim)
        return -(-head_dim // self.group), 2, tokens


def _rows(x: np.ndarray, side: Side) -> np.ndarray:
    """A view of [..., P, D] in which groups are consecutive rows; its own inverse."""
    return x if side == "k" else np.swapaxes(x, -1, -2)


KIVI: tuple[KiviFormat, ...] = tuple(
    KiviFormat(name=f"kivi{bits}{suffix}", bits=bits, group=group)
    for bits in (4, 3, 2)
    for suffix, group in (("", 32), ("-g64", 64))
)
