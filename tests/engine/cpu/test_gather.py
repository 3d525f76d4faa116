"""Vectors in another order are NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu.gather import (
    count_ones,
    gather,
    look_up_row,
    scatter,
    store_selected,
    take_bytes,
)
from engine.cpu.jit import kernel
from engine.cpu.simd import address_of, f32x16, i32x16, iota, load, store

RNG = np.random.default_rng(3)


@kernel
def _reorder(row, index, gathered, looked_up, scattered):
    places = load(i32x16, address_of(index))
    store(address_of(gathered), gather(f32x16, address_of(row), places))
    store(address_of(looked_up), look_up_row(address_of(row), row.shape[0], places))
    scatter(address_of(scattered), places, iota(i32x16))


@pytest.mark.parametrize("n", [32, 64, 512])
def test_rows_are_read_and_written_at_indices(n: int) -> None:
    row, index = RNG.random(n, np.float32), RNG.permutation(n)[:16].astype(np.int32)
    gathered, looked_up = np.zeros((2, 16), np.float32)
    scattered = np.full(n, -1, np.int32)
    _reorder(row, index, gathered, looked_up, scattered)
    np.testing.assert_array_equal(gathered, row[index])
    np.testing.assert_array_equal(looked_up, row[index])
    np.testing.assert_array_equal(scattered[index], np.arange(16))
    assert (scattered == -1).sum() == n - 16


@kernel
def _select(mask, out):
    store_selected(address_of(out), iota(i32x16), mask)
    return count_ones(mask)


@pytest.mark.parametrize("mask", [0, 1, 0x8000, 0xFFFF, 0b1010011])
def test_selected_lanes_stand_side_by_side(mask: int) -> None:
    out = np.full(16, -1, np.int32)
    lanes = [i for i in range(16) if mask >> i & 1]
    assert _select(mask, out) == len(lanes)
    assert out.tolist() == lanes + [-1] * (16 - len(lanes))


@kernel
def _take(row, index, n, out):
    take_bytes(address_of(row), address_of(index), n, address_of(out))


@pytest.mark.parametrize("n", [16, 64, 80, 128, 144, 256])
def test_bytes_are_taken_at_indices(n: int) -> None:
    row = RNG.integers(0, 256, n + 127, np.uint8)
    index = np.zeros(n + 63, np.uint8)
    index[:n] = RNG.permutation(n)
    out = np.zeros(n + 63, np.uint8)
    _take(row, index, n, out)
    np.testing.assert_array_equal(out[:n], row[index[:n]])
