"""q4_0, q5_0 and q6_0: 32 channels of one token, codes around zero, 18, 22 and 26 bytes.

| d f16 | high bits: 0, 4 or 8 bytes | low nibbles: 16 bytes |        see `blocks`

    x = d (q - 2^(b-1)),  d = (element of largest magnitude) / -2^(b-1)

so that the element of largest magnitude is code 0, whichever sign it has.  q4_0 and q5_0 equal
ggml's.  q6_0 is no ggml type: the layout is block_q6_0 of ik_llama.cpp (2024), and blocks decode
there to the same values.  Its encoder there has meanwhile come to fit d once more to the chosen
codes; here d is as in the other two.

A product is rounded before the half is added, as in gguf 0.19; older ones fused the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.kv.format import BlockFormat
from engine.kv.formats.blocks import HIGH_NBYTES, join, reciprocal, split
from engine.kv.formats.floats import F16_MAX


@dataclass(frozen=True, kw_only=True)
class SignedBlock(BlockFormat):
    bits: int

    def encode_blocks(self, x: np.ndarray) -> np.ndarray:
        zero, top = 1 << (self.bits - 1), (1 << self.bits) - 1
        peak = np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)
        d = peak / np.float32(-zero)
        q = np.trunc(x * reciprocal(d) + np.float32(zero + 0.5)).astype(np.uint8).clip(0, top)
        low, high = split(q, self.bits)
        return np.concatenate([d.astype(np.float16).view(np.uint8), high, low], axis=-1)

    def decode_blocks(self, data: np.ndarray) -> np.ndarray:
        start = 2 + HIGH_NBYTES[self.bits]
        d = np.ascontiguousarray(data[..., :2]).view(np.float16).astype(np.float32)
        q = join(data[..., start:], data[..., 2:start], self.bits).astype(np.float32)
        return d * (q - np.float32(1 << (self.bits - 1)))


Q4_0 = SignedBlock(name="q4_0", bits=4, block=32, block_nbytes=18, limit=8 * F16_MAX)
Q5_0 = SignedBlock(name="q5_0", bits=5, block=32, block_nbytes=22, limit=16 * F16_MAX)
Q6_0 = SignedBlock(name="q6_0", bits=6, block=32, block_nbytes=26, limit=32 * F16_MAX)
