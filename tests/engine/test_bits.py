"""Packing is exact, and bfloat16 is what its definition says."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants

from engine.bits import (
    SET_STEPS,
    STEP_CODES,
    bf16_from_f32,
    f32_from_bf16,
    pack_steps,
    planes,
    unpack_steps,
)


@pytest.mark.parametrize("n", [1, 9, STEP_CODES])
@pytest.mark.parametrize("steps", [1, 7, 8, 9, 16, 40])
@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacking_undoes_packing(bits: int, steps: int, n: int) -> None:
    rng = np.random.default_rng(steps)
    codes = rng.integers(0, 1 << bits, (2, 3, steps, n), np.uint8)
    packed = pack_steps(codes, bits)
    assert packed.shape == (2, 3, -(-steps // SET_STEPS) * bits * n)
    np.testing.assert_array_equal(unpack_steps(packed, bits, steps, n), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_whole_sets_take_exactly_their_bits_a_code(bits: int) -> None:
    codes = np.full((16, STEP_CODES), (1 << bits) - 1, np.uint8)
    packed = pack_steps(codes, bits)
    assert packed.size * 8 == codes.size * bits
    assert (packed == 255).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_are_the_binary_digits_widest_first(bits: int) -> None:
    widths = [width for width, _ in planes(bits)]
    assert sum(widths) == bits and widths == sorted(set(widths), reverse=True)
    assert [first for _, first in planes(bits)] == [sum(widths[:i]) for i in range(len(widths))]


# (bits, step, code): the lines of a set and the byte each then holds, the others being 0
PLACES = {
    (3, 0, 0b110): {0: 0b10, 2: 1},
    (3, 3, 0b110): {0: 0b10 << 6, 2: 1 << 3},
    (3, 4, 0b011): {1: 0b11},
    (3, 7, 0b101): {1: 0b01 << 6, 2: 1 << 7},
    (2, 5, 0b10): {1: 0b10 << 2},
    (4, 2, 0b1010): {1: 0b1010},
    (4, 7, 0b1001): {3: 0b1001 << 4},
    (5, 3, 0b10110): {1: 0b0110 << 4, 4: 1 << 3},
    (6, 6, 0b110011): {3: 0b0011, 5: 0b11 << 4},
    (7, 1, 0b1011100): {0: 0b1100 << 4, 4: 0b01 << 2, 6: 1 << 1},
    (8, 5, 0b11001010): {5: 0b11001010},
}


@pytest.mark.parametrize(("bits", "step", "code"), PLACES)
def test_bits_are_where_the_layout_says(bits: int, step: int, code: int) -> None:
    for lane in (0, 17, 63):
        codes = np.zeros((SET_STEPS, STEP_CODES), np.uint8)
        codes[step, lane] = code
        want = np.zeros((bits, STEP_CODES), np.uint8)
        for line, byte in PLACES[bits, step, code].items():
            want[line, lane] = byte
        np.testing.assert_array_equal(pack_steps(codes, bits), want.reshape(-1))


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
