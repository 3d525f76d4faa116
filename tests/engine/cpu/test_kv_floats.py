"""Register blocks, transpositions and table look-ups do what NumPy does."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu.jit import kernel
from engine.cpu.kv_floats import (
    add_products,
    add_scaled,
    lane_sums,
    larger_magnitude,
    load_sums,
    lower_pairs,
    lower_quads,
    store_folded,
    store_sums,
    transpose,
    upper_pairs,
    upper_quads,
)
from engine.cpu.lookup import (
    look_up,
    look_up_64,
    look_up_64_portable,
    look_up_bytes,
    look_up_bytes_portable,
    look_up_portable,
)
from engine.cpu.simd import address_of, bitcast, f32x16, load, store, u8x32, u8x64, u16x32, u32x16

RNG = np.random.default_rng(4)


@kernel
def _look_up(table, indices, out):
    found = look_up(load(f32x16, address_of(table)), load(u32x16, address_of(indices)))
    store(address_of(out), found)


@kernel
def _look_up_portable(table, indices, out):
    found = look_up_portable(load(f32x16, address_of(table)), load(u32x16, address_of(indices)))
    store(address_of(out), found)


@pytest.mark.parametrize("body", [_look_up, _look_up_portable])
def test_tables_are_looked_up_lane_by_lane(body) -> None:
    table, indices = RNG.random(16, np.float32), RNG.integers(0, 16, 16, np.uint32)
    out = np.zeros(16, np.float32)
    body(table, indices, out)
    np.testing.assert_array_equal(out, table[indices])


@kernel
def _look_up_bytes(table, indices, out):
    found = look_up_bytes(load(u8x32, address_of(table)), load(u8x32, address_of(indices)))
    store(address_of(out), found)


@kernel
def _look_up_bytes_portable(table, indices, out):
    found = look_up_bytes_portable(load(u8x32, address_of(table)), load(u8x32, address_of(indices)))
    store(address_of(out), found)


@kernel
def _look_up_64(table, indices, out):
    found = look_up_64(load(u8x64, address_of(table)), load(u8x64, address_of(indices)))
    store(address_of(out), found)


@kernel
def _look_up_64_portable(table, indices, out):
    found = look_up_64_portable(load(u8x64, address_of(table)), load(u8x64, address_of(indices)))
    store(address_of(out), found)


@pytest.mark.parametrize(
    ("body", "n"),
    [
        (_look_up_bytes, 32),
        (_look_up_bytes_portable, 32),
        (_look_up_64, 64),
        (_look_up_64_portable, 64),
    ],
)
def test_bytes_are_looked_up_lane_by_lane(body, n: int) -> None:
    table, indices = RNG.integers(0, 256, 16, np.uint8), RNG.integers(0, 16, n, np.uint8)
    out = np.zeros(n, np.uint8)
    body(np.tile(table, n // 16), indices, out)
    np.testing.assert_array_equal(out, table[indices])


@kernel
def _lane_sums(vectors, out):
    store(address_of(out), lane_sums(address_of(vectors)))


def test_sums_of_vectors_become_lanes() -> None:
    vectors = RNG.integers(-99, 99, (16, 16)).astype(np.float32)
    out = np.zeros(16, np.float32)
    _lane_sums(vectors, out)
    np.testing.assert_array_equal(out, vectors.sum(axis=1))


@kernel
def _transpose(words, out):
    transpose(address_of(words), 80, address_of(out))


def test_words_are_transposed() -> None:
    words, out = RNG.integers(0, 2**32, (16, 20), np.uint32), np.zeros((16, 16), np.uint32)
    _transpose(words, out)
    np.testing.assert_array_equal(out, words[:, :16].T)


@kernel
def _fold(sums, out, rows):
    store_folded(address_of(sums), address_of(out), 128, rows)


def test_columns_are_added_to_those_eight_further_and_become_rows() -> None:
    sums = RNG.integers(-99, 99, (16, 16)).astype(np.float32)
    for rows in (1, 3, 8):
        out = np.full((9, 32), 7, np.float32)
        _fold(sums, out, rows)
        np.testing.assert_array_equal(out[:rows, :16], (sums[:, :8] + sums[:, 8:]).T[:rows])
        assert (out[rows:] == 7).all() and (out[:, 16:] == 7).all()


@kernel
def _weave(words, out):
    a, b = load(u16x32, address_of(words)), load(u16x32, address_of(words) + 64)
    low = bitcast(f32x16, lower_pairs(a, b))
    high = bitcast(f32x16, upper_pairs(a, b))
    store(address_of(out), lower_quads(low, high))
    store(address_of(out) + 64, upper_quads(low, high))


def test_pairs_come_back_into_order() -> None:
    # bytes of ordinary floats, whatever is made of two of them
    words, out = RNG.integers(1, 30000, (2, 32), np.uint16), np.zeros((32, 2), np.uint16)
    _weave(words, out)
    np.testing.assert_array_equal(out, words.T)


@kernel
def _larger_magnitude(top, values, out):
    a, b = load(f32x16, address_of(top)), load(f32x16, address_of(values))
    store(address_of(out), larger_magnitude(a, b))


def test_the_larger_magnitude() -> None:
    top, values = RNG.random(16, np.float32), RNG.standard_normal(16, np.float32)
    out = np.zeros(16, np.float32)
    _larger_magnitude(top, values, out)
    np.testing.assert_array_equal(out, np.maximum(top, np.abs(values)))


@kernel
def _blocks(left, right, weights, sums, out):
    found = load_sums(address_of(sums), 128, 3, 2)
    found = add_products(found, address_of(left), 64, address_of(right), 64, 3)
    found = add_scaled(found, address_of(weights), 8, address_of(right), 64, 3)
    store_sums(address_of(out), 128, found, 3)


def test_a_block_of_products_adds_each_row_times_each_column() -> None:
    left, right, sums = (
        RNG.integers(-9, 9, shape).astype(np.float32) for shape in ((3, 16), (2, 16), (3, 2, 16))
    )
    weights, out = RNG.integers(-9, 9, (3, 2)).astype(np.float32), np.zeros_like(sums)
    _blocks(left, right, weights, sums, out)
    want = sums + left[:, None] * right[None] + weights[:, :1, None] * right[None]
    np.testing.assert_array_equal(out, want)
