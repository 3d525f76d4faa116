"""kivi: each group of tokens or of channels has the range of its own values, in the drawn bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from rows import gaussian, pages

from engine.kv.format import Side
from engine.kv.formats import kv_format
from engine.kv.formats.channels import padded_dim
from engine.kv.formats.kivi import KIVI, KiviFormat

SIDES: tuple[Side, Side] = ("k", "v")
every_member = pytest.mark.parametrize("kind", KIVI, ids=[f.name for f in KIVI])


def named(name: str) -> KiviFormat:
    kind = kv_format(name)
    assert isinstance(kind, KiviFormat)
    return kind


def recipe(x: np.ndarray, kind: KiviFormat, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """The reconstruction of a page [P, D] in float64, and where a code was a tie but for 1e-3."""
    rows = (x if side == "k" else x.T).astype(np.float64)
    decoded, tie = np.empty_like(rows), np.zeros(rows.shape, bool)
    for start in range(0, len(rows), kind.group):
        for column in range(rows.shape[1]):
            values = rows[start : start + kind.group, column]
            m = float(np.float16(values.min()))
            span = np.float32(values.max()) - np.float32(values.min())
            s = float(np.float16(span / np.float32(2**kind.bits - 1)))
            s = max(s, 2.0**-24 * (span > 0))
            exact = (values - m) / s if s else 0 * values
            code = np.clip(np.rint(exact), 0, 2**kind.bits - 1)
            decoded[start : start + kind.group, column] = m + s * code
            off = np.abs(np.abs(exact - np.rint(exact)) - 0.5) < 1e-3
            tie[start : start + kind.group, column] = off
    return (decoded, tie) if side == "k" else (decoded.T, tie.T)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dim", [64, 72, 80])
@every_member
def test_reconstruction_is_the_recipes(kind: KiviFormat, dim: int, side: Side) -> None:
    x = gaussian(128, dim, seed=dim)
    want, tie = recipe(x, kind, side)
    got = kind.decode(kind.encode(x, side), dim, side)
    np.testing.assert_allclose(got[~tie], want[~tie], rtol=1e-5, atol=1e-5)
    assert tie.mean() < 0.02


@pytest.mark.parametrize("side", SIDES)
@every_member
def test_awkward_pages_follow_the_recipe(kind: KiviFormat, side: Side) -> None:
    for name, x in pages(kind.page_tokens, 64).items():
        want, tie = recipe(x, kind, side)
        got = kind.decode(kind.encode(x, side), 64, side)
        error = np.abs(got - want)[~tie]
        assert (error <= 1e-5 * np.abs(want[~tie]) + 1e-6).all(), name


def test_keys_share_ranges_along_tokens_and_values_along_channels() -> None:
    kind, x = named("kivi4"), gaussian(128, 64)
    for side in SIDES:
        touched = x.copy()
        touched[40, 40] = 50  # stretches the range of its group alone
        a, b = (kind.decode(kind.encode(y, side), 64, side) for y in (x, touched))
        rows, columns = np.nonzero(a != b)
        if side == "k":
            assert set(columns) == {40} and rows.min() >= 32 and rows.max() < 64
        else:
            assert set(rows) == {40} and columns.min() >= 32 and columns.max() < 64
        assert len(rows) > 16


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["kivi2:96", "kivi3-g64:96"])
def test_ranges_lie_where_the_drawing_says(name: str, side: Side) -> None:
    kind, tokens, dim = named(name), 96, 72
    x = gaussian(tokens, dim)
    page = kind.encode(x, side)
    stored = page[kind.codes_nbytes(tokens, dim) :].copy().view(np.float16)
    rows, n = (x, padded_dim(dim)) if side == "k" else (x.T, tokens)
    for g, start in enumerate(range(0, len(rows), kind.group)):
        m, s = stored[2 * g * n : 2 * (g + 1) * n].reshape(2, n)[:, : rows.shape[1]]
        part = rows[start : start + kind.group]
        span = (part.max(axis=0) - part.min(axis=0)) / np.float32(2**kind.bits - 1)
        np.testing.assert_array_equal(m, part.min(axis=0).astype(np.float16))
        np.testing.assert_array_equal(s, span.astype(np.float16))


@every_member
def test_bits_per_value_are_codes_and_ranges(kind: KiviFormat) -> None:
    for dim in (64, 128, 256):
        assert kind.bits_per_value(128, dim) == kind.bits + 32 / kind.group
    # 72 channels of V are three groups of 32 or two of 64: more than K's ranges take
    groups = 3 if kind.group == 32 else 2
    assert kind.page_nbytes(128, 72) == 128 * 80 * kind.bits // 8 + 4 * groups * 128


def test_what_float16_cannot_hold_saturates() -> None:
    x = gaussian(128, 64)
    x[5, 7], x[9, 20] = 1e6, -3e38
    for side in SIDES:
        got = named("kivi4").decode(named("kivi4").encode(x, side), 64, side)
        assert np.isfinite(got).all()
        assert got[9, 20] == pytest.approx(-65504, rel=1e-3)


def test_stored_pages_stay_readable() -> None:
    # Pages are kept in snapshots: these bytes are layout version 1.
    t, d = np.mgrid[:128, :72]
    x = ((t * 7 + d * 13 + t * d) % 23 - 11).astype(np.float32)
    digest = hashlib.sha256()
    for side in SIDES:
        digest.update(named("kivi3").encode(x, side).tobytes())
    assert digest.hexdigest()[:16] == "8e01e502970063c7"
