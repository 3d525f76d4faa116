"""Bit-level helpers that formats share: bfloat16 and the "planes 2+1" packing of 3-bit codes."""

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


# A *step* is 64 codes: 16 lanes of 4 codes, one byte each when unpacked.  Eight steps are a *set*,
# packed into 192 bytes: two 64-byte lines with the codes' low two bits (steps 0-3 in the first, 4-7
# in the second, step j at bit 2 (j mod 4)) and one line with their high bits (step j at bit j).
# Byte i of every line belongs to byte i of the step, so unpacking is shift, mask and or on whole
# lines, with no movement between lanes.
STEP_CODES = 64
SET_STEPS = 8
SET_BYTES = 192


def pack_steps(codes: np.ndarray) -> np.ndarray:
    """Pack 3-bit codes uint8 [..., steps, 64] into uint8 [..., sets * 192]; steps pad to a set."""
    *lead, steps, _ = codes.shape
    sets = -(-steps // SET_STEPS)
    padded = np.zeros((*lead, sets * SET_STEPS, STEP_CODES), np.uint8)
    padded[..., :steps, :] = codes
    s = padded.reshape(*lead, sets, SET_STEPS, STEP_CODES)
    out = np.zeros((*lead, sets, 3, STEP_CODES), np.uint8)
    for j in range(SET_STEPS):
        out[..., j // 4, :] |= (s[..., j, :] & 3) << (2 * (j % 4))
        out[..., 2, :] |= (s[..., j, :] >> 2) << j
    return out.reshape(*lead, sets * SET_BYTES)


def unpack_steps(packed: np.ndarray, steps: int) -> np.ndarray:
    """Inverse of `pack_steps`: uint8 [..., sets * 192] to codes uint8 [..., steps, 64]."""
    lead = packed.shape[:-1]
    lines = packed.reshape(*lead, -1, 3, STEP_CODES)
    s = np.empty((*lines.shape[:-2], SET_STEPS, STEP_CODES), np.uint8)
    for j in range(SET_STEPS):
        low = (lines[..., j // 4, :] >> (2 * (j % 4))) & 3
        s[..., j, :] = low | (((lines[..., 2, :] >> j) & 1) << 2)
    return s.reshape(*lead, -1, STEP_CODES)[..., :steps, :]
