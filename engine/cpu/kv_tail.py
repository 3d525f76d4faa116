"""What sealing a page has in common for all page formats: its tokens as floats, codes as steps."""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import call, kernel
from engine.cpu.simd import (
    convert,
    load,
    load_u32,
    store,
    store_f32,
    store_u32,
    u8x16,
    u32x16,
    zeros,
)


@kernel
def row_stride(values):
    """float32 values from one decoded row to the next."""
    return (values + 15) & ~15


@kernel
def decode_rows(rows, tokens, row_nbytes, decoder, values, dim, target):
    """float32 rows [tokens, stride] with zeros behind dim."""
    for t in range(tokens):
        row = target + 4 * t * row_stride(values)
        call(decoder, (rows + t * row_nbytes, row, values))
        for c in range(dim, row_stride(values)):
            store_f32(row + 4 * c, np.float32(0))


@kernel
def key_step(codes, lanes, step):
    """A step of 16 tokens by 4 channels from codes uint8 [16, lanes]."""
    for i in range(16):
        store_u32(step + 4 * i, load_u32(codes + i * lanes))


@kernel
def value_step(codes, lanes, step):
    """A step of 16 channels by 4 tokens from codes uint8 [4, lanes]."""
    word = zeros(u32x16)
    for i in range(4):
        part = convert(u32x16, load(u8x16, codes + i * lanes))
        word = word | (part << (8 * i))
    store(step, word)
