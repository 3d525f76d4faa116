"""Packing is exact, and bfloat16 is what its definition says."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants

from engine.bits import (
    SET_BYTES,
    SET_STEPS,
    STEP_CODES,
    bf16_from_f32,
    f32_from_bf16,
    pack_steps,
    unpack_steps,
)


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 16, 40])
def test_unpacking_undoes_packing(steps: int) -> None:
    codes = np.random.default_rng(steps).integers(0, 8, (2, 3, steps, STEP_CODES), np.uint8)
    packed = pack_steps(codes)
    assert packed.shape == (2, 3, -(-steps // SET_STEPS) * SET_BYTES)
    np.testing.assert_array_equal(unpack_steps(packed, steps), codes)


def test_whole_sets_take_exactly_three_bits_a_code() -> None:
    codes = np.full((16, STEP_CODES), 7, np.uint8)
    packed = pack_steps(codes)
    assert packed.size * 8 == codes.size * 3
    assert (packed == 255).all()


def test_bits_are_where_the_layout_says() -> None:
    for step, lane in ((0, 0), (3, 17), (4, 63), (7, 5)):
        codes = np.zeros((SET_STEPS, STEP_CODES), np.uint8)
        codes[step, lane] = 0b110
        want = np.zeros((3, STEP_CODES), np.uint8)
        want[step // 4, lane] = 0b10 << (2 * (step % 4))
        want[2, lane] = 1 << step
        np.testing.assert_array_equal(pack_steps(codes), want.reshape(-1))


def patterns(*bits: int) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


SPECIAL = {
    "zeros": patterns(0, 0x80000000),
    "infinities": patterns(0x7F800000, 0xFF800000),
    "tie to even, down": patterns(0x3F808000),
    "tie to even, up": patterns(0x3F818000),
    "just above a tie": patterns(0x3F808001),
    "just below a tie": patterns(0x3F817FFF),
    "carry into the exponent": patterns(0x3FFFFFFF),
    "overflow to infinity": patterns(0x7F7FFFFF, 0xFF7FFFFF),
    "subnormal": patterns(1, 0x00007FFF, 0x00008000, 0x00018000, 0x007FFFFF),
}


def nearest_even(x: np.ndarray) -> np.ndarray:
    """bfloat16 by its definition: the nearer neighbour, on a tie the one with an even pattern."""
    low = x.view(np.uint32) >> 16  # toward zero
    below, above = (u.astype(np.uint32) << 16 for u in (low, low + 1))
    exact = np.abs(x.astype(np.float64))
    # what would be infinity stands for 2^128, the next power
    neighbours = [
        np.where(u & 0x7FFFFFFF == 0x7F800000, 2.0**128, np.abs(u.view(np.float32), dtype=float))
        for u in (below, above)
    ]
    down, up = exact - neighbours[0], neighbours[1] - exact
    return np.where((up < down) | ((up == down) & (low % 2 == 1)), low + 1, low).astype(np.uint16)


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values_round_to_nearest_even(name: str) -> None:
    x = SPECIAL[name]
    want = nearest_even(x) if np.isfinite(x).all() else (x.view(np.uint32) >> 16)
    np.testing.assert_array_equal(bf16_from_f32(x), want)


def test_random_values_round_to_nearest_even() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    np.testing.assert_array_equal(bf16_from_f32(x), nearest_even(x))


def test_bfloat16_is_ggmls_for_every_kind_of_value() -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, 32768, dtype=np.uint32)
    bits[: 1 << 12] |= 0x7F800000  # infinities and NaNs of every payload
    x = bits.view(np.float32)
    want = quants.quantize(x, gguf.GGMLQuantizationType.BF16).view(np.uint16)
    np.testing.assert_array_equal(bf16_from_f32(x), want)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0x7FC00000, 0xFFFFFFFF])
def test_nan_stays_nan_and_keeps_its_sign(bits: int) -> None:
    half = bf16_from_f32(patterns(bits))
    assert np.isnan(f32_from_bf16(half)).all()
    assert half[0] >> 15 == bits >> 31


def test_every_pattern_comes_back_from_its_value() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    values = f32_from_bf16(every)
    same = ~np.isnan(values)
    np.testing.assert_array_equal(bf16_from_f32(values)[same], every[same])
