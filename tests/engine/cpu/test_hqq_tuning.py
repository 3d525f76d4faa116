"""Groups tuned many at once have the recipe's bytes, whatever their neighbours do."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu.kv_encode import ENCODERS
from engine.cpu.kv_hqq import HQQ_ROWS
from engine.kv.formats import kv_format


def rows_of_every_kind(count: int, dim: int) -> np.ndarray:
    """Rows that settle at once, late, never, that leave the range of codes, that are constant."""
    rng = np.random.default_rng(dim)
    x = rng.standard_normal((count, dim)) * np.exp(3 * rng.standard_normal((count, 1)))
    x[1::9] = np.round(x[1::9] * 4)
    x[2::9] = x[2::9, :1]
    x[3::9] = np.where(rng.random(x[3::9].shape) < 0.03, 50, x[3::9] * 0.01)
    x[4::9] = np.exp(np.clip(x[4::9], -9, 9))
    x[5::9] *= 1e-8
    x[6::9] += 100
    return np.clip(x, -65504, 65504).astype(np.float32)


@pytest.mark.parametrize("name", ["hqq4:64", "hqq2:32", "hqq8:128"])
@pytest.mark.parametrize("dim", [8, 64, 72, 128, 1160])
def test_rows_encoded_together_are_the_recipes(name: str, dim: int) -> None:
    kind, x = kv_format(name), rows_of_every_kind(45, dim)
    want = kind.encode(x, "k").reshape(len(x), -1)
    got, nbytes = np.zeros_like(want), want.shape[1]
    for first, count in ((0, 16), (16, 1), (17, 5), (22, 23)):
        HQQ_ROWS[name].function(
            ENCODERS[name].address, x[first:].ctypes.data, 4 * dim,
            got[first:].ctypes.data, nbytes, dim, count,
        )  # fmt: skip
    np.testing.assert_array_equal(got, want)
