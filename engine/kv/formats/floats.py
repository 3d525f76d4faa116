"""f32, f16 and bf16: a token's row is its values, little-endian."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bits import bf16_from_f32, f32_from_bf16
from engine.kv.format import BlockFormat

F32_MAX, F16_MAX = float(np.finfo(np.float32).max), float(np.finfo(np.float16).max)
BF16_MAX = float(np.ldexp(255.0, 120))


@dataclass(frozen=True, kw_only=True)
class Float(BlockFormat):
    """A NumPy float type stored as it is."""

    dtype: str = "<f4"

    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.astype(self.dtype)).view(np.uint8)

    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(data).view(self.dtype).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class BFloat16(BlockFormat):
    """The upper half of a float32, rounded to nearest even."""

    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        return bf16_from_f32(x).view(np.uint8)

    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        return f32_from_bf16(np.ascontiguousarray(data).view(np.uint16))


F32 = Float(name="f32", block=1, block_nbytes=4, limit=F32_MAX, dtype="<f4")
F16 = Float(name="f16", block=1, block_nbytes=2, limit=F16_MAX, dtype="<f2")
BF16 = BFloat16(name="bf16", block=1, block_nbytes=2, limit=BF16_MAX)
