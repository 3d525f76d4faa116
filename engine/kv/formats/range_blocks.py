"""q4_1 and q5_1: 32 channels of one token, codes over their range, equal to ggml's.

| d f16 | m f16 | high bits: 0 or 4 bytes | nibbles: 16 bytes |     20 and 24 bytes: `blocks`

    x = d q + m,  d = (max - min) / (2^b - 1),  m = min
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.kv.format import BlockFormat
from engine.kv.formats.blocks import HIGH_NBYTES, join, reciprocal, split
from engine.kv.formats.floats import F16_MAX


@dataclass(frozen=True, kw_only=True)
class RangeBlock(BlockFormat):
    bits: int

    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        top = (1 << self.bits) - 1
        # the first of the smallest: where zeros of both signs are, that is the one ggml stores
        low = np.take_along_axis(x, x.argmin(axis=-1, keepdims=True), axis=-1)
        d = (x.max(axis=-1, keepdims=True) - low) / np.float32(top)
        q = np.trunc((x - low) * reciprocal(d) + np.float32(0.5)).astype(np.uint8).clip(0, top)
        nibbles, rest = split(q, self.bits)
        header = np.concatenate([d, low], axis=-1).astype(np.float16)
        return np.concatenate([header.view(np.uint8), rest, nibbles], axis=-1)

    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        start = 4 + HIGH_NBYTES[self.bits]
        header = np.ascontiguousarray(data[..., :4]).view(np.float16).astype(np.float32)
        q = join(data[..., start:], data[..., 4:start], self.bits).astype(np.float32)
        return header[..., :1] * q + header[..., 1:]


Q4_1 = RangeBlock(name="q4_1", bits=4, block=32, block_nbytes=20, limit=F16_MAX)
Q5_1 = RangeBlock(name="q5_1", bits=5, block=32, block_nbytes=24, limit=F16_MAX)
