"""2^x in AVX-512's own instructions, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu.host import AMX
from engine.cpu.jit import kernel
from engine.cpu.powers import subnormals_return, subnormals_vanish, vexp2
from engine.cpu.simd import address_of, f32x16, load, store

pytestmark = pytest.mark.skipif(not AMX, reason="no tile registers, so never called")
TINY = np.finfo(np.float32).tiny


@kernel
def _powers(x, out):
    for i in range(0, 4 * x.shape[0], 64):
        store(address_of(out) + i, vexp2(load(f32x16, address_of(x) + i)))


@kernel
def _flushed_powers(x, out):
    subnormals_vanish()
    _powers(x, out)
    subnormals_return()


def test_powers_of_two_are_exact_to_3e_6() -> None:
    near = np.arange(-125, 128)
    below, above = np.nextafter(near, -200, dtype=np.float32), np.nextafter(near, 200, dtype="f4")
    x = np.concatenate([np.linspace(-126, 127.9, 1 << 14), near, below, above, [-1e-9, 1e-9, 0]])
    x = np.resize(x, -(-x.size // 16) * 16).astype(np.float32)
    out = np.full(x.size, np.nan, np.float32)
    _powers(x, out)
    np.testing.assert_allclose(out, np.exp2(x.astype(np.float64)), rtol=3.1e-6)


def test_whole_powers_of_two_are_exact() -> None:
    x = np.arange(-112, 128).astype(np.float32)
    out = np.full(x.size, np.nan, np.float32)
    _powers(x, out)
    np.testing.assert_array_equal(out, np.exp2(x.astype(np.float64)))


def test_powers_beyond_float32_are_zero_and_infinity() -> None:
    x = np.array([-np.inf, -1e30, -1e8, -200, 128, 129, 1e8, 1e30] * 2, np.float32)
    out = np.full(16, np.nan, np.float32)
    _powers(x, out)
    np.testing.assert_array_equal(out, ([0.0] * 4 + [np.inf] * 4) * 2)


def test_subnormal_powers_vanish_where_asked_to_and_nowhere_else() -> None:
    x = np.linspace(-140, -126.5, 16, dtype=np.float32)
    out = np.full(16, np.nan, np.float32)
    _flushed_powers(x, out)
    np.testing.assert_array_equal(out, np.zeros(16))
    _powers(x, out)
    assert np.all((out > 0) & (out < TINY))
