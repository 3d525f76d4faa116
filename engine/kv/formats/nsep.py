"""int3nsep: norm-separated, per-channel, asymmetric 3-bit codes over a page of P tokens.

A page of one KV head, D = head_dim rounded up to 16 channels (padding channels hold code 0):

    | codes: sets of 512 (`engine.bits`), ceil(P D / 512) x 192 bytes |
    | n' f16 [P] | m f16 [D] | s f16 [D] |                     layout version 1

    x[t, d] = n'[t] (m[d] + s[d] code[t, d])

The steps of 64 codes run, for K, over groups of 16 tokens and inside a group over quads of channels
(lane = token, 4 channels per lane), for V over groups of 16 channels and quads of tokens (lane =
channel): the reduction of a score runs over channels and that of a mix over tokens, so both stay
inside a lane.  Recipe: unit directions u = x / |x|, per-channel range [m, M] of u over the page,
s = (M - m) / 7, both rounded to float16 *before* the codes are chosen, and n' = |x| / |decoded u|:
re-normalization is folded into the stored norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bits import SET_BYTES, SET_STEPS, STEP_CODES, pack_steps, unpack_steps
from engine.kv.format import PAGE, KVFormat, Side

LEVELS = 7  # 2^3 - 1
F16_TINY = np.float32(2.0**-24)  # the smallest positive float16


def padded_dim(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


@dataclass(frozen=True, kw_only=True)
class NSep(KVFormat):
    page_tokens: int = PAGE

    def codes_nbytes(self, tokens: int, head_dim: int) -> int:
        set_codes = SET_STEPS * STEP_CODES
        return -(-tokens * padded_dim(head_dim) // set_codes) * SET_BYTES

    def page_nbytes(self, tokens: int, head_dim: int) -> int:
        return self.codes_nbytes(tokens, head_dim) + 2 * tokens + 4 * padded_dim(head_dim)

    def encode(self, x: np.ndarray, side: Side) -> np.ndarray:
        *lead, tokens, dim = x.shape
        codes, norms, low, step = quantize(x)
        wide = np.zeros((*lead, tokens, padded_dim(dim)), np.uint8)
        wide[..., :dim] = codes
        ranges = np.zeros((*lead, 2, padded_dim(dim)), np.float16)
        ranges[..., 0, :dim], ranges[..., 1, :dim] = low, step
        metadata = [norms, ranges.reshape(*lead, -1)]
        parts = [pack_steps(_to_steps(wide, side)), *(part.view(np.uint8) for part in metadata)]
        return np.concatenate(parts, axis=-1)

    def decode(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray:
        tokens, wide = self.page_tokens, padded_dim(head_dim)
        end = self.codes_nbytes(tokens, head_dim)
        steps = unpack_steps(page[..., :end], tokens * wide // STEP_CODES)
        codes = _from_steps(steps, tokens, wide, side)[..., :head_dim].astype(np.float32)
        metadata = np.ascontiguousarray(page[..., end:]).view(np.float16).astype(np.float32)
        norms, low = metadata[..., :tokens], metadata[..., tokens : tokens + head_dim]
        step = metadata[..., tokens + wide : tokens + wide + head_dim]
        return norms[..., None] * (low[..., None, :] + step[..., None, :] * codes)


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The recipe on float32 x [..., P, D]: codes uint8 [..., P, D], n' [..., P], m and s [..., D]
    in float16."""
    norm = np.maximum(np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True)), np.float32(1e-12))
    u = x / norm
    low, high = u.min(axis=-2, keepdims=True), u.max(axis=-2, keepdims=True)
    m = low.astype(np.float16)
    s = ((high - low) / np.float32(LEVELS)).astype(np.float16)
    s = np.where(high > low, np.maximum(s, np.float16(F16_TINY)), np.float16(0))
    m32, s32 = m.astype(np.float32), s.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(s32 > 0, (u - m32) / s32, np.float32(0))
    codes = np.clip(np.rint(scaled), 0, LEVELS)
    decoded = m32 + codes * s32
    length = np.sqrt(np.sum(np.square(decoded), axis=-1, keepdims=True))
    gain = norm / np.maximum(length, np.float32(1e-8))
    gain = np.minimum(gain, np.finfo(np.float16).max)
    return (
        codes.astype(np.uint8),
        gain[..., 0].astype(np.float16),
        m[..., 0, :],
        s[..., 0, :],
    )


def _to_steps(codes: np.ndarray, side: Side) -> np.ndarray:
    """uint8 [..., P, D] to steps [..., P D / 64, 64]."""
    lanes = codes if side == "k" else np.swapaxes(codes, -1, -2)
    *lead, rows, columns = lanes.shape
    quads = lanes.reshape(*lead, rows // 16, 16, columns // 4, 4)
    return np.swapaxes(quads, -2, -3).reshape(*lead, -1, STEP_CODES)


def _from_steps(steps: np.ndarray, tokens: int, dim: int, side: Side) -> np.ndarray:
    rows, columns = (tokens, dim) if side == "k" else (dim, tokens)
    lead = steps.shape[:-2]
    quads = steps.reshape(*lead, rows // 16, columns // 4, 16, 4)
    lanes = np.swapaxes(quads, -2, -3).reshape(*lead, rows, columns)
    return lanes if side == "k" else np.swapaxes(lanes, -1, -2)


INT3NSEP = NSep(name="int3nsep")
