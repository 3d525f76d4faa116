"""How weight matrices lie in memory: sixteen rows side by side.

A product with a vector reads every weight once, so a lane belongs to a row: sums need no step
across lanes, scales are vectors, and activations are broadcast.  A *group* is 16 rows (missing
rows are zeros), and a stream of *units*, 16 blocks of the file side by side.  Codes and scales are
exactly the file's, only in another order:

    | codes: a set of 8 steps of 16 rows x 4 columns (`engine.bits`), 64 b bytes, per 32 columns |
    | scales [columns / sub, 16] | minima, where the type has them, alike |
    | superblock types: d f16 [16] | dmin f16 [16], with minima |

    weight = scale (code - zero) + minimum

Scales and minima are f16; in superblock types they are int8, to be multiplied by d and dmin.

Floats lie as [columns, 16] (f32, f16) and bf16 as pairs [columns / 2, 16, 2].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.kv.formats import iq4_nl

LANES = 16  # rows of a group
SET = 32  # columns of a set
LEVELS = (iq4_nl.LEVELS + 128).astype(np.uint8)  # ggml's kvalues_iq4nl, around 128


@dataclass(frozen=True)
class Layout:
    """`bits` per code; `zero` is subtracted from it; `sub` columns share a scale; `block` columns
    are `block_nbytes` bytes of the file; `minima`: the type has them; `levels`: codes are places
    in `LEVELS`, and the code meant above is found there."""

    bits: int
    zero: int
    block: int
    block_nbytes: int
    sub: int = 32
    minima: bool = False
    levels: bool = False

    @property
    def super(self) -> bool:
        """Whether scales are int8 under a superblock's f16."""
        return self.block == 256

    @property
    def parts(self) -> tuple[int, int, int, int, int]:
        """Bytes of a unit's codes, scales, minima, d and dmin."""
        scales = self.block // self.sub * LANES * (1 if self.super else 2)
        d = 2 * LANES if self.super else 0
        codes = self.block * self.bits * LANES // 8
        return codes, scales, scales * self.minima, d, d * self.minima

    @property
    def unit_nbytes(self) -> int:
        return sum(self.parts)

    def group_nbytes(self, columns: int) -> int:
        return columns // self.block * self.unit_nbytes


LAYOUTS = {
    "Q8_0": Layout(8, 128, 32, 34),
    "Q4_0": Layout(4, 8, 32, 18),
    "Q4_1": Layout(4, 0, 32, 20, minima=True),
    "Q5_0": Layout(5, 16, 32, 22),
    "Q5_1": Layout(5, 0, 32, 24, minima=True),
    "IQ4_NL": Layout(4, 128, 32, 18, levels=True),
    "Q2_K": Layout(2, 0, 256, 84, sub=16, minima=True),
    "Q3_K": Layout(3, 4, 256, 110, sub=16),
    "Q4_K": Layout(4, 0, 256, 144, minima=True),
    "Q5_K": Layout(5, 0, 256, 176, minima=True),
    "Q6_K": Layout(6, 32, 256, 210, sub=16),
    "IQ4_XS": Layout(4, 128, 256, 136, levels=True),
}
