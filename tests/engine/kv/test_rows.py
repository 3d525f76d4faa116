"""The row types: each is its recipe, in the bytes that its drawing shows."""

from __future__ import annotations

import numpy as np
import pytest
from rows import HEAD_DIMS, gaussian, pages

from engine.kv.formats import kv_format
from engine.kv.formats.rows import ROWS, RowFormat

every_row = pytest.mark.parametrize("kind", ROWS, ids=[f.name for f in ROWS])


def recipe(x: np.ndarray, kind: RowFormat) -> tuple[np.ndarray, np.ndarray]:
    """Codes and reconstruction of rows [T, D], one value at a time in Python's own numbers."""
    codes, values = np.zeros(x.shape, int), np.zeros(x.shape)
    for t, row in enumerate(x):
        top, m = 2**kind.bits - 1, np.float32(0)
        if kind.asym:
            m, span = np.float32(min(row)), np.float32(max(row)) - np.float32(min(row))
        else:
            top = 2 ** (kind.bits - 1) - 1
            span = np.float32(max(abs(v) for v in row))
        zero = 0 if kind.asym else top
        s, m = (np.float32(np.float16(part)) for part in (span / np.float32(top), m))
        if s == 0 and span > 0:
            s = np.float32(2.0**-24)
        for d, v in enumerate(row):
            code = round(float((v - m) / s)) if s else 0  # Python rounds ties to even, too
            codes[t, d] = min(max(code, -zero), top) + zero
            values[t, d] = float(m) + float(s) * (codes[t, d] - zero)
    return codes, values


@every_row
def test_values_are_the_recipes(kind: RowFormat) -> None:
    for name, x in {**pages(16, 72), "gaussian": gaussian(16, 64)}.items():
        if name == "huge":
            x = x.clip(-kind.limit, kind.limit)
        got = kind.decode(kind.encode(x, "k"), x.shape[1], "k")
        np.testing.assert_allclose(got, recipe(x, kind)[1], rtol=1e-6, atol=0, err_msg=name)


@pytest.mark.parametrize("dim", [16, 64, 72])
@every_row
def test_bytes_are_those_of_the_drawing(kind: RowFormat, dim: int) -> None:
    x = gaussian(3, dim)
    codes = recipe(x, kind)[0]
    packed = kind.encode(x, "v").reshape(3, -1)
    assert packed.shape[1] == kind.row_nbytes(dim) == (4 if kind.asym else 2) + dim * kind.bits // 8
    n, found = dim // 8, np.zeros((3, dim), int)
    for channel in range(dim):
        step, j, line, first = channel // n, channel % n, 0, 0
        for width in (w for w in (8, 4, 2, 1) if kind.bits & w):
            byte = packed[:, (4 if kind.asym else 2) + (line + step // (8 // width)) * n + j]
            part = (byte >> (width * (step % (8 // width)))) & ((1 << width) - 1)
            found[:, channel] |= part.astype(int) << first
            line, first = line + width, first + width
    np.testing.assert_array_equal(found, codes)
    header = np.ascontiguousarray(packed[:, : 4 if kind.asym else 2]).view(np.float16)
    if kind.asym:
        np.testing.assert_array_equal(header[:, 1], x.min(axis=1).astype(np.float16))


@every_row
def test_errors_stay_within_half_a_step(kind: RowFormat) -> None:
    for name, x in pages(32, 128).items():
        if name == "huge":
            x = x.clip(-kind.limit, kind.limit)
        span = x.max(axis=1) - x.min(axis=1) if kind.asym else np.abs(x).max(axis=1)
        top = 2**kind.bits - 1 if kind.asym else 2 ** (kind.bits - 1) - 1
        # scale and minimum are rounded to half precision, tiny ones to multiples of 2^-24
        peak = np.abs(x).max(axis=1)
        bound = 0.5 * span / top + 2.0**-11 * (peak + span) + top * 2.0**-24
        error = np.abs(kind.decode(kind.encode(x, "k"), 128, "k") - x)
        assert (error <= bound[:, None] * (1 + 1e-6)).all(), name


def test_two_symmetric_bits_are_ternary() -> None:
    x = gaussian(32, 64)
    got = kv_format("int2row").decode(kv_format("int2row").encode(x, "k"), 64, "k")
    peak = np.abs(x).max(axis=1, keepdims=True).astype(np.float16)
    assert set(np.unique(got / peak)) == {-1, 0, 1}


@pytest.mark.parametrize("factor", [0.25, 8.0])
@every_row
def test_codes_do_not_depend_on_a_tokens_size(kind: RowFormat, factor: float) -> None:
    # why norm separation changes nothing where every token has a scale of its own
    x = gaussian(16, 64)
    header = 4 if kind.asym else 2
    a, b = (kind.encode(part, "k").reshape(16, -1) for part in (x, x * np.float32(factor)))
    np.testing.assert_array_equal(a[:, header:], b[:, header:])


@every_row
def test_head_dims_that_are_multiples_of_8_take_no_padding(kind: RowFormat) -> None:
    for dim in HEAD_DIMS:
        want = kind.bits + (32 if kind.asym else 16) / dim
        assert kind.bits_per_value(128, dim) == pytest.approx(want, abs=1e-12)


@every_row
def test_other_head_dims_are_padded_with_zeros(kind: RowFormat) -> None:
    x = gaussian(4, 20)
    wide = np.pad(x, ((0, 0), (0, 4)))
    np.testing.assert_array_equal(kind.encode(x, "k"), kind.encode(wide, "k"))
    np.testing.assert_array_equal(
        kind.decode(kind.encode(x, "k"), 20, "k"),
        kind.decode(kind.encode(wide, "k"), 24, "k")[:, :20],
    )
