"""Sums of products are exact, on every path that a host may take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.bits import pack_steps
from engine.cpu.amx import (
    first_part,
    pair_bf16,
    sums_add_halves,
    sums_add_tiles,
    sums_load,
    sums_store,
    sums_zero,
    tiles_begin,
    tiles_end,
)
from engine.cpu.dot import dot_bytes, dot_bytes_portable, four_bytes
from engine.cpu.host import AMX
from engine.cpu.jit import kernel
from engine.cpu.planes import gather_steps, pack_set, step_codes
from engine.cpu.simd import address_of, f32x16, i8x64, i32x16, load, store, swap_pairs, u8x64

RNG = np.random.default_rng(5)


@kernel
def _dot(sums, u, s, out):
    a, b = load(u8x64, address_of(u)), load(i8x64, address_of(s))
    store(address_of(out), dot_bytes(load(i32x16, address_of(sums)), a, b))


@kernel
def _dot_portable(sums, u, s, out):
    a, b = load(u8x64, address_of(u)), load(i8x64, address_of(s))
    store(address_of(out), dot_bytes_portable(load(i32x16, address_of(sums)), a, b))


@kernel
def _dot_four(sums, u, s, out):
    a, b = load(u8x64, address_of(u)), four_bytes(address_of(s))
    store(address_of(out), dot_bytes(load(i32x16, address_of(sums)), a, b))


@pytest.mark.parametrize("kernel", [_dot, _dot_portable], ids=["host", "portable"])
def test_products_of_bytes_are_numpys(kernel: Callable[..., None]) -> None:
    sums = RNG.integers(-(2**30), 2**30, 16, dtype=np.int32)
    out = np.zeros(16, np.int32)
    pairs = [(RNG.integers(0, 256, 64), RNG.integers(-128, 128, 64)) for _ in range(20)]
    pairs += [(np.full(64, 255), np.full(64, sign)) for sign in (-128, 127)]  # no saturation
    for u, s in pairs:
        kernel(sums, u.astype(np.uint8), s.astype(np.int8), out)
        np.testing.assert_array_equal(out, sums + (u * s).reshape(16, 4).sum(axis=1))


def test_four_bytes_go_to_every_lane() -> None:
    u, s = RNG.integers(0, 256, 64, np.uint8), RNG.integers(-128, 128, 64).astype(np.int8)
    out, zeros = np.zeros(16, np.int32), np.zeros(16, np.int32)
    _dot_four(zeros, u, s, out)
    want = (u.reshape(16, 4).astype(np.int32) * s[:4]).sum(axis=1)
    np.testing.assert_array_equal(out, want)


@kernel
def _pack(codes, stride, bits, steps, packed, unpacked):
    gather_steps(address_of(codes), stride, address_of(steps))
    pack_set(address_of(steps), address_of(packed), bits)
    for k in range(8):
        store(address_of(unpacked) + 64 * k, step_codes(address_of(packed), k, bits))


@pytest.mark.parametrize("bits", range(1, 9))
def test_sets_are_packed_as_engine_bits_says(bits: int) -> None:
    codes = RNG.integers(0, 2**bits, (16, 48), np.uint8)  # of 48 columns, the first 32
    steps, packed = np.zeros((8, 64), np.uint8), np.zeros(64 * bits, np.uint8)
    unpacked = np.zeros((8, 64), np.uint8)
    _pack(codes, 48, bits, steps, packed, unpacked)
    want = codes[:, :32].reshape(16, 8, 4).swapaxes(0, 1).reshape(8, 64)
    np.testing.assert_array_equal(steps, want)
    np.testing.assert_array_equal(packed, pack_steps(want, bits))
    np.testing.assert_array_equal(unpacked, want)


@kernel
def _pairs(x, y, out, swapped):
    a, b = load(f32x16, address_of(x)), load(f32x16, address_of(y))
    store(address_of(out), pair_bf16(a, b))
    store(address_of(swapped), swap_pairs(a))


def bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 values rounded to 8 bits, halves away from zero."""
    return ((x.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_pairs_are_rounded_to_nearest() -> None:
    x, y = RNG.standard_normal((2, 16)).astype(np.float32)
    x[:3] = [1.00390625, 1.01171875, -1.00390625]  # halves between two bfloat16
    out, swapped = np.zeros((16, 2), np.uint16), np.zeros(16, np.float32)
    _pairs(x, y, out, swapped)
    values = (out.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(values, np.stack([bfloat16(x), bfloat16(y)], axis=1))
    np.testing.assert_array_equal(swapped, x.reshape(8, 2)[:, ::-1].reshape(16))


@kernel
def _product_of_halves(config, left, right, low, out):
    tiles_begin(address_of(config))
    sums_zero()
    tile = address_of(right)
    for part in range(first_part(low), 3):
        sums_add_halves(part, address_of(left), 128, tile, tile + 1024, low)
    sums_store(address_of(out), 128)
    tiles_end()


@kernel
def _product_of_tiles(config, left, right, n, out):
    tiles_begin(address_of(config))
    sums_load(address_of(out), 128)
    panel, tiles = address_of(right), address_of(left)
    sums_add_tiles(tiles, tiles + 1024 * n, panel, panel + 1024 * n, n)
    sums_store(address_of(out), 128)
    tiles_end()


@pytest.mark.skipif(not AMX, reason="no tile registers here")
@pytest.mark.parametrize("n", [1, 2, 5])
def test_tiles_multiply_matrices(n: int) -> None:
    left, right = (
        bfloat16(RNG.standard_normal(s).astype(np.float32)) for s in ((32, 32 * n), (32 * n, 32))
    )
    halves = (x.view(np.uint32) >> 16 for x in (left, right))
    rows, columns = (half.astype(np.uint16) for half in halves)
    # pairs of rows 2 k, 2 k + 1, lane by lane, for either half of the columns
    pairs = columns.reshape(n, 16, 2, 2, 16).transpose(3, 0, 1, 4, 2).copy()
    out, config = np.zeros((32, 32), np.float32), np.full(64, 0xFF, np.uint8)
    want = left.astype(np.float64) @ right
    tiles = rows.reshape(2, 16, n, 32).swapaxes(1, 2).copy()
    _product_of_tiles(config, tiles, pairs, n, out)
    np.testing.assert_allclose(out, want, atol=1e-5)


def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bits of x's high and low halves, and their sum."""
    high = bfloat16(x)
    low = bfloat16(x - high)
    halves = np.stack([(half.view(np.uint32) >> 16).astype(np.uint16) for half in (high, low)])
    return halves, high.astype(np.float64) + low


@pytest.mark.skipif(not AMX, reason="no tile registers here")
@pytest.mark.parametrize("exact", [False, True])
def test_tiles_multiply_halves(exact: bool) -> None:
    x, y = RNG.standard_normal((2, 32, 32)).astype(np.float32)
    y = bfloat16(y) if exact else y
    (left, a), (right, b) = split(x), split(y)
    rows = left.transpose(1, 0, 2).copy()  # the low halves behind the high ones
    pairs = right.reshape(2, 16, 2, 2, 16).transpose(0, 3, 1, 4, 2).copy()
    out, config = np.zeros((32, 32), np.float32), np.full(64, 0xFF, np.uint8)
    _product_of_halves(config, rows, pairs, 0 if exact else pairs.strides[0], out)
    # low low is left out
    np.testing.assert_allclose(out, a @ b, atol=1e-5 if exact else 2e-4)
