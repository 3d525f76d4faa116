"""hqq{b}:{g}, b = 2, 3, 4 or 8, g = 32, 64 or 128: groups of a token's channels, tuned minima.

A row of D channels, D rounded up to 8 (zeros behind head_dim), has G = ceil(D / g) groups of g
consecutive channels, the last of which may be shorter:

    | s f16 [G] | m f16 [G] | codes: 8 steps of D / 8 channels (`engine.bits`), b D / 8 bytes |

    x = m + s code;  channel i is code i mod (D / 8) of step i div (D / 8)      layout version 1

The recipe is HQQ's (Badri and Shaji 2023, half-quadratic quantization):

    s = (max x - min x) / (2^b - 1), fixed; z = -min x / s
    20 times:  q = clamp(round(x / s + z));  e = x - s (q - z)
               z = mean(q - (x - shrink(e)) / s)
               shrink(e) = sign(e) max(|e| - |e|^(p - 1) / beta, 0),  p = 0.7, beta = 10
    m = -s z

It is carried out in float32 and in an order that backends can keep.  With y = (x - min x) (1 / s)
and z counted from the minimum, a round is

    e = (y + z - clamp(round(y + z))) s
    z = z - sum(sign(e) min(|e|, w(|e|))) / (n s)         the sum as in `channels.lane_sum`

until z moves by no more than 2^-11 of a level; m = min x - s z.  w(a) = a^(p - 1) / beta to 4 %
comes from a float's bits, which are about a logarithm (see `_limit`): the error of what is stored
is HQQ's to 0.2 %.

s and m are float16, never bfloat16, which would cost an offset channel whole levels, and rounded
*before* the codes are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bits import SET_STEPS, pack_steps, unpack_steps
from engine.kv.format import TokenFormat
from engine.kv.formats.channels import lane_sum
from engine.kv.formats.floats import F16_MAX
from engine.kv.formats.scales import asymmetric, encode_codes

ROUNDS, STILL = 20, np.float32(2.0**-11)
POWER = np.float32(-0.3)  # p - 1
# log2(w(1)) and the exponents' bias, which POWER takes a part of; by 0.06 less the errors of both
# signs are equal
OFFSET = np.float32(2.0**23 * (127 * 1.3 - np.log2(10) - 0.06))


@dataclass(frozen=True, kw_only=True)
class HqqFormat(TokenFormat):
    """`bits` per code, a range for every `group` channels."""

    bits: int
    group: int

    def groups(self, channels: int) -> int:
        return -(-channels // self.group)

    def row_nbytes(self, head_dim: int) -> int:
        channels = self.channels(head_dim)
        return 4 * self.groups(channels) + channels * self.bits // 8

    def encode_rows(self, x: np.ndarray) -> np.ndarray:
        *lead, channels = x.shape
        codes = np.empty(x.shape, np.uint8)
        header = np.empty((*lead, 2, self.groups(channels)), np.float16)
        for g in range(self.groups(channels)):
            cut = slice(g * self.group, (g + 1) * self.group)
            m, s = self._fit(x[..., cut])
            codes[..., cut] = encode_codes(x[..., cut], m, s, self.bits)
            header[..., 0, g], header[..., 1, g] = s[..., 0], m[..., 0]
        packed = pack_steps(codes.reshape(*lead, SET_STEPS, -1), self.bits)
        return np.concatenate([header.reshape(*lead, -1).view(np.uint8), packed], axis=-1)

    def _fit(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """m and s of float32 x [..., n], float16 [..., 1]."""
        # a minimum may be a zero of either sign: with 0 added there is one
        low, step = asymmetric(x + np.float32(0), self.bits, axis=-1)
        s = np.where(step > 0, step.astype(np.float32), np.float32(1))
        floor, top = x.min(axis=-1, keepdims=True), np.float32((1 << self.bits) - 1)
        y = (x - floor) * (np.float32(1) / s)
        z, moving = np.zeros_like(s), np.ones_like(s, bool)
        for _ in range(ROUNDS):
            v = y + z
            e = (v - np.clip(np.rint(v), 0, top)) * s
            move = lane_sum(_limited(e)) / (s * np.float32(x.shape[-1]))
            z = np.where(moving, z - move, z)
            moving &= np.abs(move) > STILL
        # a minimum that float16 can hold stays one
        m = np.maximum(floor - s * z, np.minimum(floor, np.float32(-F16_MAX)))
        return np.where(step > 0, m.astype(np.float16), low), step

    def decode_rows(self, data: np.ndarray, channels: int) -> np.ndarray:
        groups, lead = self.groups(channels), data.shape[:-1]
        header = np.ascontiguousarray(data[..., : 4 * groups]).view(np.float16)
        s, m = np.moveaxis(header.reshape(*lead, 2, groups).astype(np.float32), -2, 0)
        steps = unpack_steps(data[..., 4 * groups :], self.bits, SET_STEPS, channels // SET_STEPS)
        codes = steps.reshape(*lead, channels).astype(np.float32)
        group = np.arange(channels) // self.group
        return m[..., group] + s[..., group] * codes


def _limited(e: np.ndarray) -> np.ndarray:
    """sign(e) min(|e|, w(|e|)): what HQQ's shrinking takes off."""
    size = np.abs(e)
    return np.copysign(np.minimum(size, _limit(size)), e)


def _limit(size: np.ndarray) -> np.ndarray:
    """w of float32 `size`: as an integer, a float's pattern is 2^23 (127 + log2 of it) and up to
    9 % of 2^23 less."""
    pattern = size.view(np.int32).astype(np.float32)
    return (pattern * POWER + OFFSET).astype(np.int32).view(np.float32)


HQQ: tuple[HqqFormat, ...] = tuple(
    HqqFormat(name=f"hqq{bits}:{group}", bits=bits, group=group, block=SET_STEPS, limit=F16_MAX)
    for bits in (8, 4, 3, 2)
    for group in (32, 64, 128)
)
