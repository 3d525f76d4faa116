"""q8_0: 32 channels of one token, 34 bytes, equal to ggml's.

| d f16 | 32 x int8 q |        x = d q,  d = max|x| / 127
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.kv.format import BlockFormat
from engine.kv.formats.blocks import reciprocal
from engine.kv.formats.floats import F16_MAX


def round_half_away(x: np.ndarray) -> np.ndarray:
    """C's roundf, which ggml uses: halves go away from zero."""
    magnitude = np.abs(x)
    whole = np.floor(magnitude)
    return np.copysign(whole + np.floor(2 * (magnitude - whole)), x)


@dataclass(frozen=True, kw_only=True)
class Q80(BlockFormat):
    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        d = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        q = round_half_away(x * reciprocal(d)).astype(np.int8)
        return np.concatenate([d.astype(np.float16).view(np.uint8), q.view(np.uint8)], axis=-1)

    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        d = np.ascontiguousarray(data[..., :2]).view(np.float16).astype(np.float32)
        return d * data[..., 2:].view(np.int8).astype(np.float32)


Q8_0 = Q80(name="q8_0", block=32, block_nbytes=34, limit=127 * F16_MAX)
