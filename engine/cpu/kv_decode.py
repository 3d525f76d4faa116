"""Decoders of all token formats, by name: those of the weights, and those that only caches have."""

from __future__ import annotations

import numpy as np

from engine.cpu.blocks import BLOCK_DECODERS
from engine.cpu.jit import Verb
from engine.cpu.kv_hqq import HQQ_DECODERS
from engine.cpu.kv_rows import ROW_DECODERS
from engine.cpu.simd import convert, f32x8, fma, load, load_f16, splat, store, u8x8
from engine.kv.formats.signed_blocks import Q6_0


def q6_0(source, target, n):
    for _ in range(n // 32):
        d = load_f16(source)
        scale, offset = splat(f32x8, d), splat(f32x8, np.float32(-32) * d)
        high = load(u8x8, source + 2)
        for half in range(2):  # channels 8 half + (0..7), and those 16 further on
            nibbles, upper = load(u8x8, source + 10 + 8 * half), high >> (4 * half)
            first = (nibbles & 15) | ((upper & 3) << 4)
            second = (nibbles >> 4) | (((upper >> 2) & 3) << 4)
            store(target + 32 * half, fma(convert(f32x8, first), scale, offset))
            store(target + 64 + 32 * half, fma(convert(f32x8, second), scale, offset))
        source += 26
        target += 128


DECODERS = {
    **{name.lower(): decoder for name, decoder in BLOCK_DECODERS.items()},
    Q6_0.name: Verb(q6_0),
    **ROW_DECODERS,
    **HQQ_DECODERS,
}
