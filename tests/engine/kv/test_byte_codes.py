"""Byte codes cover their row, are the nearest there are, and know zero."""

from __future__ import annotations

import numpy as np
import pytest

from engine.kv.formats.byte_codes import decode_linear, decode_log, encode_linear, encode_log

RNG = np.random.default_rng(0)
SPREADS = (0.0, 1e-3, 1.0, 8.0)


@pytest.mark.parametrize("spread", SPREADS)
def test_logarithmic_codes_are_within_half_a_step(spread: float) -> None:
    x = np.exp2(spread * RNG.uniform(-1, 1, (5, 64)) - 3)
    codes, pair = encode_log(x)
    step = pair[:, 1:].astype(np.float64)
    assert (np.abs(np.log2(decode_log(codes, pair) / x)) <= 0.51 * step + 1e-6).all()
    assert (step <= 1.01 * (2 * spread / 254) + 1e-4).all()
    assert codes.dtype == np.uint8 and (codes > 0).all()


@pytest.mark.parametrize("spread", SPREADS)
def test_codes_rounded_up_are_never_smaller_and_less_than_a_step_larger(spread: float) -> None:
    x = np.exp2(spread * RNG.uniform(-1, 1, (5, 64)))
    codes, pair = encode_log(x, up=True)
    excess = np.log2(decode_log(codes, pair) / x)
    step = pair[:, 1:].astype(np.float64)
    assert (excess >= -1.1e-3 * step - 1e-6).all() and (excess <= step + 1e-6).all()


def test_zeros_and_what_float32_would_lose_beside_the_largest_are_zero() -> None:
    x = np.array([[0, 1.0, 1e-9, 0.5], [0, 0, 0, 0]])
    codes, pair = encode_log(x)
    got = decode_log(codes, pair)
    assert got[0, [0, 2]].tolist() == [0, 0] and not got[1].any()
    np.testing.assert_allclose(got[0, [1, 3]], [1, 0.5], rtol=1e-2)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e30])
def test_logarithmic_codes_take_any_size(size: float) -> None:
    x = size * np.array([[1, 2, 3.0, 1000]])
    codes, pair = encode_log(x)
    np.testing.assert_allclose(decode_log(codes, pair), x, rtol=0.02)


@pytest.mark.parametrize("spread", SPREADS)
def test_linear_codes_are_within_half_a_step(spread: float) -> None:
    x = spread * RNG.uniform(-1, 1, (5, 64)) + 0.3
    codes, pair = encode_linear(x)
    step = pair[:, 1:].astype(np.float64)
    assert (np.abs(decode_linear(codes, pair) - x) <= 0.51 * step + 1e-6).all()
    # the pair itself is rounded to float16, outwards
    assert (step <= 1.01 * 2 * spread / 255 + 1e-5).all()
