"""iq4_nl: 32 channels of one token, codes into 16 unequal levels, 18 bytes, equal to ggml's.

| d f16 | low nibbles: 16 bytes |        see `blocks`;  x = d LEVELS[q]

The recipe is that of ggml's quantize_row_iq4_nl_ref, which also writes ggml's KV caches:

1. first guess d0 = (element of largest magnitude) / -127; a block all below 1e-15 has d = 0
2. q = the level nearest to x (1 / d0), the upper one on a tie
3. d = sum x^2 level x / sum x^2 level^2: least squares with weights x^2, in float32, one product
   after another from left to right and the 32 terms added in order of their channels
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.kv.format import BlockFormat
from engine.kv.formats.blocks import join, reciprocal, split
from engine.kv.formats.floats import F16_MAX

LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
MIDPOINTS = (LEVELS[1:] + LEVELS[:-1]) / 2
SMALLEST = np.float32(1e-15)


@dataclass(frozen=True, kw_only=True)
class IQ4NL(BlockFormat):
    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        peak = np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)
        peak = np.where(np.abs(peak) < SMALLEST, np.float32(0), peak)
        scaled = x * reciprocal(peak / LEVELS[0])
        q = np.searchsorted(MIDPOINTS, scaled, side="right").astype(np.uint8)
        q = np.where(peak == 0, np.uint8(0), q)
        level = LEVELS[q]
        product = x * x * level
        # an accumulation adds in order, a sum does not
        above = np.add.accumulate(product * x, axis=-1)[..., -1:]
        below = np.add.accumulate(product * level, axis=-1)[..., -1:]
        d = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        low, _ = split(q, 4)
        return np.concatenate([d.astype(np.float16).view(np.uint8), low], axis=-1)

    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        d = np.ascontiguousarray(data[..., :2]).view(np.float16).astype(np.float32)
        return d * LEVELS[join(data[..., 2:], data[..., :0], 4)]


# a block of equal magnitudes and unlike signs is fitted with steps of up to its peak by 113
IQ4_NL = IQ4NL(name="iq4_nl", block=32, block_nbytes=18, limit=float(LEVELS[-1]) * F16_MAX)
