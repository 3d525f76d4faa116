"""Bit-level helpers that formats share: bfloat16, and packing codes of 1 to 8 bits in planes."""

from __future__ import annotations

import numpy as np


def bf16_from_f32(x: np.ndarray) -> np.ndarray:
    """uint16 bfloat16 patterns of float32 `x`, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # rounding could carry a NaN's payload into infinity: keep it quiet instead
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def f32_from_bf16(u: np.ndarray) -> np.ndarray:
    """float32 values of uint16 bfloat16 patterns."""
    return (u.astype(np.uint32) << 16).view(np.float32)


# Packing.  Codes come in *steps* of equal length; eight steps are a *set*.  A set of b-bit codes is
# b *lines*, each as many bytes as a step has codes.  The binary digits of b are its planes, widest
# first and with the lowest bits of the codes in the widest: 3 bits are a plane of 2 and one of 1.
# A plane of w bits is w lines: step j lies in line j div (8 / w), at bit w (j mod (8 / w)).
#
#     b = 3:  | steps 0-3, bits 0-1 | steps 4-7, bits 0-1 | steps 0-7, bit 2 |
#
# Byte i of every line belongs to code i of its steps, so unpacking is shift, mask and or on whole
# lines, with no movement between lanes, and a set takes b bits a code exactly.
SET_STEPS = 8
STEP_CODES = 64  # of a page: 16 lanes of 4 codes, a byte each when unpacked


def planes(bits: int) -> list[tuple[int, int]]:
    """(width, first) of the planes of codes of `bits` <= 8 bits, in their order.

    `first` is the first bit of the codes that the plane holds, and also its first line in a set.
    """
    widths = [width for width in (8, 4, 2, 1) if bits & width]
    return [(width, bits & -2 * width) for width in widths]


def pack_steps(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes uint8 [..., steps, n] < 2^bits into uint8 [..., sets * bits * n].

    Steps are padded with zeros to whole sets.
    """
    *lead, steps, n = codes.shape
    sets = -(-steps // SET_STEPS)
    padded = np.zeros((*lead, sets * SET_STEPS, n), np.uint8)
    padded[..., :steps, :] = codes
    s = padded.reshape(*lead, sets, SET_STEPS, n)
    lines = np.zeros((*lead, sets, bits, n), np.uint8)
    for width, first in planes(bits):
        per_line, mask = 8 // width, (1 << width) - 1
        for j in range(SET_STEPS):
            part = (s[..., j, :] >> first) & mask
            lines[..., first + j // per_line, :] |= part << (width * (j % per_line))
    return lines.reshape(*lead, sets * bits * n)


def unpack_steps(packed: np.ndarray, bits: int, steps: int, n: int) -> np.ndarray:
    """Inverse of `pack_steps`: uint8 [..., sets * bits * n] to codes uint8 [..., steps, n]."""
    lead = packed.shape[:-1]
    lines = packed.reshape(*lead, -1, bits, n)
    s = np.zeros((*lines.shape[:-2], SET_STEPS, n), np.uint8)
    for width, first in planes(bits):
        per_line, mask = 8 // width, (1 << width) - 1
        for j in range(SET_STEPS):
            part = lines[..., first + j // per_line, :] >> (width * (j % per_line))
            s[..., j, :] |= (part & mask) << first
    return s.reshape(*lead, -1, n)[..., :steps, :]
