"""Vector exp, sigmoid and tanh against float64."""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import kernel
from engine.cpu.simd import address_of, f32x16, load, store
from engine.cpu.vmath import vexp, vexp2, vsigmoid, vtanh


@kernel
def _evaluate(x, exp, sigmoid, tanh):
    for i in range(0, 4 * x.shape[0], 64):
        value = load(f32x16, address_of(x) + i)
        store(address_of(exp) + i, vexp(value))
        store(address_of(sigmoid) + i, vsigmoid(value))
        store(address_of(tanh) + i, vtanh(value))


def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    out = np.full((3, x.size), np.nan, np.float32)
    _evaluate(x, *out)
    return out[0], out[1], out[2]


def test_exp_is_exact_to_two_units_in_the_last_place() -> None:
    x = np.linspace(-87, 88, 1 << 16).astype(np.float32)
    want = np.exp(x.astype(np.float64))
    error = np.abs(evaluate(x)[0] - want) / np.spacing(want.astype(np.float32))
    assert error.max() <= 2


def test_exp_is_clamped_to_normal_finite_numbers() -> None:
    x = np.array([-np.inf, -1e30, -87.5, 88.5, 1e30, np.inf] + [0.0] * 10, np.float32)
    low, high = np.exp(np.float32(-87)), np.exp(np.float32(88))
    want = np.array([low] * 3 + [high] * 3 + [1] * 10)
    np.testing.assert_allclose(evaluate(x)[0], want, rtol=3e-7)


@kernel
def _powers(x, out):
    for i in range(0, 4 * x.shape[0], 64):
        store(address_of(out) + i, vexp2(load(f32x16, address_of(x) + i)))


def test_powers_of_two_are_exact_to_3e_7_and_never_vanish() -> None:
    x = np.concatenate([np.linspace(-100, 127, 1 << 14), [-1e30, -101, -np.inf, 0] * 4])
    x = x.astype(np.float32)
    out = np.full(x.size, np.nan, np.float32)
    _powers(x, out)
    np.testing.assert_allclose(out, np.exp2(np.maximum(x, -100).astype(np.float64)), rtol=3e-7)
    assert out[-1] == 1


def test_sigmoid_and_tanh_are_exact_to_float32_rounding_of_one() -> None:
    x = np.concatenate([np.linspace(-30, 30, 1 << 12), [-1e30, 1e30, 0, -0.0] * 4])
    x = x.astype(np.float32)
    _, sigmoid, tanh = evaluate(x)
    x64 = x.astype(np.float64)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-np.clip(x64, -700, 700))), atol=2e-7)
    np.testing.assert_allclose(tanh, np.tanh(x64), atol=4e-7)
