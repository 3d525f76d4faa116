"""The doctor's figures are what their definitions say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from engine.kv.formats import kv_format
from tools.doctor_figures import (
    BITS,
    SINKS,
    bit_scan,
    directions,
    dispersion,
    outlier_ratio,
    packing_error,
    spectrum,
)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 256, 64), np.float32)


def test_the_outlier_ratio_is_that_of_the_worst_head():
    x = np.ones((2, 5, 4), np.float32)
    assert outlier_ratio(x) == 1
    x[1, 3, 2] = -13
    assert outlier_ratio(x) == 13 / 4


def test_dispersion_sees_lengths_and_not_directions(x):
    equal = x / np.linalg.norm(x, axis=-1, keepdims=True)
    assert dispersion(equal) < 1e-6
    equal[1, ::2] *= 3  # lengths 3 and 1: standard deviation 1 around 2
    assert dispersion(equal) == pytest.approx(0.5)


def test_the_spectrum_is_that_of_a_singular_value_decomposition(x):
    values = spectrum(x[:1])
    expected = np.linalg.svd(x[0], compute_uv=False)
    np.testing.assert_allclose(values, expected / np.linalg.norm(expected), rtol=1e-5)
    one = spectrum(np.ones((2, 9, 5), np.float32))
    np.testing.assert_allclose(one, [1, 0, 0, 0, 0], atol=1e-6)
    assert (directions(one), directions(np.full(10, 0.1**0.5), 0.85)) == (1, 9)


def test_noise_is_the_power_of_the_error_beside_the_variation(x):
    kind = kv_format("q4_0")
    error = kind.decode(kind.encode(x, "v"), 64, "v") - x
    found = packing_error(x, kind, "v")
    assert found.mse == pytest.approx(np.mean(error**2), rel=1e-5)
    rest, axes = x[:, SINKS:], (1, 2)
    variation = ((rest - rest.mean(axis=1, keepdims=True)) ** 2).sum(axes)
    noise = (error[:, SINKS:] ** 2).sum(axes) / variation
    assert (found.noise, found.mean_noise) == pytest.approx((noise.max(), noise.mean()), rel=1e-4)
    exact = packing_error(x, kv_format("f32"), "v")
    assert (exact.mse, exact.noise) == (0, 0) and exact.cosine == pytest.approx(1, abs=1e-6)


def test_an_error_that_all_keys_share_is_no_noise_and_one_of_values_is(x):
    # 1000 is 1000.0 or 1008 in bf16: channels far from 0 all move by the same
    shared = np.zeros_like(x)
    shared[..., 0] = 1003.0
    alike = np.where(shared > 0, shared, x)
    k, v = (packing_error(alike, kv_format("bf16"), side) for side in ("k", "v"))
    assert k.noise < 1e-4 < 0.01 < v.noise


def test_a_bias_taken_off_before_packing_does_not_harm(x):
    bias = np.zeros_like(x)
    bias[..., 5] = 500.0
    plain = packing_error(x, kv_format("q4_0"), "k")
    harmed = packing_error(x + bias, kv_format("q4_0"), "k")
    relieved = packing_error(x + bias, kv_format("q4_0"), "k", bias)
    assert harmed.noise > 10 * plain.noise
    assert relieved.noise == pytest.approx(plain.noise, rel=1e-3)


@pytest.mark.parametrize("side", ["k", "v"])
def test_every_bit_more_halves_the_error_at_least(x, side):
    for errors in bit_scan(x, side).values():
        assert len(errors) == len(BITS)
        noise = [error.noise for error in errors]
        assert all(fine < coarse / 2 for coarse, fine in pairwise(noise))
        assert errors[0].cosine < errors[-1].cosine <= 1 + 1e-6
