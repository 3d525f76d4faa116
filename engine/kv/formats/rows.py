"""int{b}row and int{b}row-asym, b = 2..8: one scale for a whole token, the plain way.

A row of D channels, D rounded up to 8 (zeros behind head_dim):

    | s f16 | m f16, -asym only | codes: 8 steps of D / 8 channels (`engine.bits`), b D / 8 bytes |

Channel i is code i mod (D / 8) of step i div (D / 8).                      layout version 1

    row:       x = s (code - qmax),  s = max|x| / qmax,  qmax = 2^(b-1) - 1: 2 bits are ternary
    row-asym:  x = m + s code,       m = min x,  s = (max x - min x) / (2^b - 1)

m and s are rounded to float16 *before* the codes are chosen (the nearest code, ties to even); the s
of a row that is not constant is at least the smallest positive float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bits import SET_STEPS, pack_steps, unpack_steps
from engine.kv.format import TokenFormat
from engine.kv.formats.floats import F16_MAX
from engine.kv.formats.scales import asymmetric, encode_codes, symmetric, zero_code


@dataclass(frozen=True, kw_only=True)
class RowFormat(TokenFormat):
    """`bits` per code; `asym`: codes over the row's range instead of around zero."""

    bits: int
    asym: bool

    @property
    def header_nbytes(self) -> int:
        return 4 if self.asym else 2

    def row_nbytes(self, head_dim: int) -> int:
        return self.header_nbytes + self.channels(head_dim) * self.bits // 8

    def encode_rows(self, x: np.ndarray) -> np.ndarray:
        *lead, channels = x.shape
        if self.asym:
            m, s = asymmetric(x, self.bits, axis=-1)
            header = np.concatenate([s, m], axis=-1)
        else:
            header = s = symmetric(x, self.bits, axis=-1)
            m = None
        codes = encode_codes(x, m, s, self.bits)
        steps = codes.reshape(*lead, SET_STEPS, channels // SET_STEPS)
        return np.concatenate([header.view(np.uint8), pack_steps(steps, self.bits)], axis=-1)

    def decode_rows(self, data: np.ndarray, channels: int) -> np.ndarray:
        header = np.ascontiguousarray(data[..., : self.header_nbytes]).view(np.float16)
        packed = data[..., self.header_nbytes :]
        steps = unpack_steps(packed, self.bits, SET_STEPS, channels // SET_STEPS)
        codes = steps.reshape(*data.shape[:-1], channels).astype(np.float32)
        s = header[..., :1].astype(np.float32)
        if self.asym:
            return header[..., 1:].astype(np.float32) + s * codes
        return s * (codes - np.float32(zero_code(self.bits)))


def _row(bits: int, asym: bool) -> RowFormat:
    # a row's scale overflows at qmax times the largest float16, its minimum at once that
    limit = F16_MAX if asym else zero_code(bits) * F16_MAX
    name = f"int{bits}row{'-asym' * asym}"
    return RowFormat(name=name, bits=bits, asym=asym, block=SET_STEPS, limit=limit)


ROWS: tuple[RowFormat, ...] = tuple(_row(b, asym) for b in range(2, 9) for asym in (False, True))
