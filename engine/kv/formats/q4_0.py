"""q4_0: 32 channels of one token, 18 bytes, equal to ggml's.

| d f16 | 16 bytes: channel i in the low nibble of byte i, channel i + 16 in its high nibble |

x = d (q - 8),  d = (element of largest magnitude) / -8

A product that is rounded before the half is added, as in gguf 0.19; older ones fused the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.kv.format import TokenFormat
from engine.kv.formats.floats import F16_MAX


@dataclass(frozen=True, kw_only=True)
class Q4_0(TokenFormat):
    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        peak = np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)
        d = peak / np.float32(-8)
        with np.errstate(divide="ignore"):
            inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
        q = np.trunc(x * inverse + np.float32(8.5)).astype(np.uint8).clip(0, 15)
        nibbles = q[..., :16] | (q[..., 16:] << 4)
        return np.concatenate([d.astype(np.float16).view(np.uint8), nibbles], axis=-1)

    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        d = np.ascontiguousarray(data[..., :2]).view(np.float16).astype(np.float32)
        nibbles = data[..., 2:]
        q = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).astype(np.float32)
        return d * (q - np.float32(8))


Q4_0_FORMAT = Q4_0(name="q4_0", block=32, block_nbytes=18, limit=8 * F16_MAX)
