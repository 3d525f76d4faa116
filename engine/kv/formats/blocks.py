"""What ggml's blocks share: codes of 32 channels are split into low nibbles and high bits.

Low, 16 bytes: channel i in the low nibble of byte i, channel i + 16 in its high nibble.

High bits: none in codes of 4 bits.  5 bits: 4 bytes, bit i of the little-endian word is channel i's
fifth bit.  6 bits: 8 bytes, byte i holds the upper two bits of channels i, i + 16, i + 8 and
i + 24, from bit 0 up.
"""

from __future__ import annotations

import numpy as np

HIGH_NBYTES = {4: 0, 5: 4, 6: 8}
_SIXES = np.array([0, 16, 8, 24])  # the channels of byte 0, in the order of their bits
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)


def reciprocal(d: np.ndarray) -> np.ndarray:
    """1 / d in float32, 0 where d is 0."""
    with np.errstate(divide="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d)


def split(q: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [..., 32] as low uint8 [..., 16] and high uint8 [..., HIGH_NBYTES[bits]]."""
    low, high = (q[..., :16] & 15) | (q[..., 16:] << 4), q >> 4
    if bits == 4:
        return low, high[..., :0]
    if bits == 5:
        return low, np.packbits(high, axis=-1, bitorder="little")
    parts = high[..., np.arange(8)[:, None] + _SIXES] << _SHIFTS
    return low, np.bitwise_or.reduce(parts, axis=-1)


def join(low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of `split`: codes uint8 [..., 32]."""
    q = np.concatenate([low & 15, low >> 4], axis=-1)
    if bits == 5:
        q |= np.unpackbits(high, axis=-1, bitorder="little") << 4
    elif bits == 6:
        upper = np.empty_like(q)
        upper[..., np.arange(8)[:, None] + _SIXES] = (high[..., None] >> _SHIFTS) & 3
        q |= upper << 4
    return q
