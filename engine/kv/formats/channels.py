"""int{b}nsep, int{b}pchan and their variants, b = 2..8: per-channel codes over a page of P tokens.

A page of one KV head, D = head_dim rounded up to 16 channels (padding channels hold code 0):

    | codes: sets of 8 steps of 64 (`engine.bits`), P D b / 8 bytes |
    | n' f16 [P], nsep only | m f16 [D], asymmetric only | s f16 [D] |        layout version 1

    x[t, d] = n'[t] (m[d] + s[d] code[t, d])       symmetric: m[d] = -s[d] qmax, qmax = 2^(b-1) - 1

The steps of 64 codes run, for K, over groups of 16 tokens and inside a group over quads of channels
(lane = token, 4 channels per lane), for V over groups of 16 channels and quads of tokens (lane =
channel): the reduction of a score runs over channels and that of a mix over tokens, so both stay
inside a lane.

    K, step k: tokens 16 g .. 16 g + 15 of group g = k div (D / 4), channels 4 c .. 4 c + 3 of quad
    c = k mod (D / 4); its code 4 i + j is that of token 16 g + i, channel 4 c + j.  V: the same
    with channels and tokens exchanged.

Recipe, u = x / |x| for nsep and x for pchan:

    asymmetric:  m = min u,  s = (max u - m) / (2^b - 1)       per channel over the page
    symmetric:   s = max|u| / qmax
    n' = |x| / |decoded u|: re-normalization is folded into the stored norm; |x| itself in -raw

m and s are rounded to float16 *before* the codes are chosen.  What float16 cannot hold saturates.

    | name          | norms | ranges     | the papers call it                     |
    | int{b}nsep    | n'    | asymmetric | b = 3: INT3 v0.3                       |
    | int{b}nsep-sym| n'    | symmetric  | b = 4: the INT4 recipe                 |
    | int{b}pchan   | none  | symmetric  | naive transplant from weights          |
    | ..pchan-asym  | none  | asymmetric |                                        |
    | ..nsep..-raw  | |x|   | either     | norm separation without re-normalizing |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.bits import STEP_CODES, pack_steps, unpack_steps
from engine.kv.format import PAGE, KVFormat, Side
from engine.kv.formats.floats import F16_MAX
from engine.kv.formats.scales import asymmetric, encode_codes, symmetric, zero_code

# The least lengths divided by: a token of zeros has none
LEAST_NORM, LEAST_RESTORED = np.float32(1e-12), np.float32(1e-8)


def padded_dim(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


@dataclass(frozen=True, kw_only=True)
class ChannelFormat(KVFormat):
    """`bits` per code; `asym`: codes over each channel's range instead of around zero; `norms`: the
    tokens' lengths are not separated, stored as they are, or restored after quantization."""

    bits: int
    asym: bool
    norms: Literal["none", "raw", "restored"]
    page_tokens: int = PAGE

    def codes_nbytes(self, tokens: int, head_dim: int) -> int:
        return tokens * padded_dim(head_dim) * self.bits // 8

    def page_nbytes(self, tokens: int, head_dim: int) -> int:
        norms = 0 if self.norms == "none" else 2 * tokens
        ranges = (4 if self.asym else 2) * padded_dim(head_dim)
        return self.codes_nbytes(tokens, head_dim) + norms + ranges

    def encode(self, x: np.ndarray, side: Side, weights: np.ndarray | None = None) -> np.ndarray:
        *lead, tokens, dim = x.shape
        codes, norms, m, s = self.quantize(x)
        wide = np.zeros((*lead, tokens, padded_dim(dim)), np.uint8)
        wide[..., :dim] = codes
        ranges = np.zeros((*lead, 1 + self.asym, padded_dim(dim)), np.float16)
        ranges[..., -1, :dim] = s[..., 0, :]
        if m is not None:
            ranges[..., 0, :dim] = m[..., 0, :]
        metadata = [ranges.reshape(*lead, -1)]
        if norms is not None:
            metadata.insert(0, norms[..., 0])
        packed = pack_steps(to_steps(wide, side), self.bits)
        parts = [np.ascontiguousarray(part).view(np.uint8) for part in metadata]
        return np.concatenate([packed, *parts], axis=-1)

    def quantize(
        self, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray]:
        """The recipe on float32 x [..., P, D]: codes uint8 [..., P, D], and in float16 n'
        [..., P, 1], m and s [..., 1, D], None where the type has none."""
        norm = None
        if self.norms == "none":
            u = np.clip(x, -F16_MAX, F16_MAX)
        else:
            norm = np.maximum(length(x), LEAST_NORM)
            u = x / norm
        if self.asym:
            m, s = asymmetric(u, self.bits, axis=-2)
        else:
            m, s = None, symmetric(u, self.bits, axis=-2)
        codes = encode_codes(u, m, s, self.bits)
        if norm is None:
            return codes, None, m, s
        if self.norms == "restored":
            norm = norm / np.maximum(length(self._decoded(codes, m, s)), LEAST_RESTORED)
        return codes, np.minimum(norm, F16_MAX).astype(np.float16), m, s

    def _decoded(self, codes: np.ndarray, m: np.ndarray | None, s: np.ndarray) -> np.ndarray:
        """What codes stand for, before norms: float32 in the shape of uint8 `codes`."""
        step = s.astype(np.float32)
        if m is None:
            return (codes.astype(np.float32) - np.float32(zero_code(self.bits))) * step
        return m.astype(np.float32) + codes.astype(np.float32) * step

    def decode(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray:
        tokens, wide = self.page_tokens, padded_dim(head_dim)
        end = self.codes_nbytes(tokens, head_dim)
        packed = page[..., :end]
        steps = unpack_steps(packed, self.bits, tokens * wide // STEP_CODES, STEP_CODES)
        codes = from_steps(steps, tokens, wide, side)[..., :head_dim]
        metadata = np.ascontiguousarray(page[..., end:]).view(np.float16)
        separate = self.norms != "none"
        norms, ranges = np.split(metadata, [tokens if separate else 0], axis=-1)
        ranges = ranges.reshape(*page.shape[:-1], -1, 1, wide)[..., :head_dim]
        m = ranges[..., 0, :, :] if self.asym else None
        u = self._decoded(codes, m, ranges[..., -1, :, :])
        return norms[..., None].astype(np.float32) * u if separate else u


def length(x: np.ndarray) -> np.ndarray:
    """Lengths [..., 1] of float x [..., D], in its type, in an order that backends can keep."""
    return np.sqrt(lane_sum(np.square(x)))


def lane_sum(x: np.ndarray) -> np.ndarray:
    """Sums [..., 1] of float x [..., D] in its type.

    Lane i adds x of channels i, i + 16, i + 32, ... one after another; then halves of the 16 lanes
    are added until one is left.
    """
    padded = np.zeros((*x.shape[:-1], padded_dim(x.shape[-1])), x.dtype)
    padded[..., : x.shape[-1]] = x
    total = padded[..., :16]
    for first in range(16, padded.shape[-1], 16):
        total = total + padded[..., first : first + 16]
    while (lanes := total.shape[-1] // 2) > 0:
        total = total[..., :lanes] + total[..., lanes:]
    return total


def to_steps(codes: np.ndarray, side: Side) -> np.ndarray:
    """uint8 [..., P, D] to steps [..., P D / 64, 64]."""
    lanes = codes if side == "k" else np.swapaxes(codes, -1, -2)
    *lead, rows, columns = lanes.shape
    quads = lanes.reshape(*lead, rows // 16, 16, columns // 4, 4)
    return np.swapaxes(quads, -2, -3).reshape(*lead, -1, STEP_CODES)


def from_steps(steps: np.ndarray, tokens: int, dim: int, side: Side) -> np.ndarray:
    """Inverse of `to_steps`."""
    rows, columns = (tokens, dim) if side == "k" else (dim, tokens)
    lead = steps.shape[:-2]
    quads = steps.reshape(*lead, rows // 16, columns // 4, 16, 4)
    lanes = np.swapaxes(quads, -2, -3).reshape(*lead, rows, columns)
    return lanes if side == "k" else np.swapaxes(lanes, -1, -2)


def _members(bits: int) -> list[ChannelFormat]:
    found = []
    for suffix, asym in (("", True), ("-sym", False)):
        for raw in (False, True):
            name = f"int{bits}nsep{suffix}{'-raw' * raw}"
            norms = "raw" if raw else "restored"
            found.append(ChannelFormat(name=name, bits=bits, asym=asym, norms=norms))
    for suffix, asym in (("", False), ("-asym", True)):
        name = f"int{bits}pchan{suffix}"
        found.append(ChannelFormat(name=name, bits=bits, asym=asym, norms="none"))
    return found


CHANNELS: tuple[ChannelFormat, ...] = tuple(f for b in range(2, 9) for f in _members(b))
