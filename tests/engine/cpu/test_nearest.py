"""Distances from integers, limits that keep a sign, four sums at once: the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu.jit import kernel
from engine.cpu.nearest import (
    four_sums,
    from_nearest,
    from_nearest_portable,
    limited,
    limited_portable,
)
from engine.cpu.simd import address_of, f32x16, load, reduce_add, store, store_f32


@kernel
def run_distances(x, limit, out, portable):
    for i in range(0, 4 * len(x), 64):
        v, most = load(f32x16, address_of(x) + i), load(f32x16, address_of(limit) + i)
        store(address_of(out[0]) + i, from_nearest(v))
        store(address_of(out[1]) + i, limited(v, most))
        store(address_of(portable[0]) + i, from_nearest_portable(v))
        store(address_of(portable[1]) + i, limited_portable(v, most))


@kernel
def run_sums(x, found, single):
    first = address_of(x)
    a, b = load(f32x16, first), load(f32x16, first + 64)
    c, d = load(f32x16, first + 128), load(f32x16, first + 192)
    store(address_of(found), four_sums(a, b, c, d))
    for i in range(4):
        store_f32(address_of(single) + 4 * i, reduce_add(load(f32x16, address_of(x) + 64 * i)))


@pytest.mark.parametrize("size", [1e-40, 1e-3, 1, 300, 1e9])
def test_instructions_are_the_operations_they_replace(size: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(1600) * size).astype(np.float32)
    x[:8] = 0.5, 1.5, -0.5, -2.5, 0, -0.0, 7, -8
    limit = np.abs(rng.standard_normal(1600) * size).astype(np.float32)
    limit[800:810] = np.abs(x[800:810])
    out, portable = np.empty((2, 2, 1600), np.float32)
    run_distances(x, limit, out, portable)
    np.testing.assert_array_equal(out[0], x - np.rint(x))
    np.testing.assert_array_equal(
        out[1].view(np.uint32), np.copysign(np.minimum(np.abs(x), limit), x).view(np.uint32)
    )
    np.testing.assert_array_equal(out[0], portable[0])
    np.testing.assert_array_equal(out[1].view(np.uint32), portable[1].view(np.uint32))


def test_four_sums_are_those_of_four_reductions() -> None:
    x = (np.random.default_rng(1).standard_normal((4, 16)) ** 5).astype(np.float32)
    found, single = np.empty(16, np.float32), np.empty(4, np.float32)
    run_sums(x, found, single)
    np.testing.assert_array_equal(found[::4], single)
