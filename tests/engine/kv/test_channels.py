"""The grid of per-channel types: each is its recipe, in the bytes that its drawing shows."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from rows import gaussian, pages

from engine.kv.format import Side
from engine.kv.formats import kv_format
from engine.kv.formats.channels import CHANNELS, ChannelFormat

HALF = 2.0**-11  # relative error of a rounding to float16
SIDES: tuple[Side, Side] = ("k", "v")
every_member = pytest.mark.parametrize("kind", CHANNELS, ids=[f.name for f in CHANNELS])


def recipe(x: np.ndarray, kind: ChannelFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reconstruction of a page [P, D] in float64 with norms unrounded, the size of a step in
    it, and where a code was within 1e-3 of a tie, which float32 may decide the other way."""
    x = x.astype(np.float64)
    n = np.ones((len(x), 1))
    if kind.norms != "none":
        n = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    u, top = x / n, 2**kind.bits - 1
    if kind.asym:
        low, span, zero = u.min(axis=0), u.max(axis=0) - u.min(axis=0), 0
    else:
        top = 2 ** (kind.bits - 1) - 1
        low, span, zero = np.zeros(x.shape[1]), np.abs(u).max(axis=0), top
    m, s = (part.astype(np.float16).astype(np.float64) for part in (low, span / top))
    s = np.where(span > 0, np.maximum(s, 2.0**-24), 0)
    exact = np.zeros_like(u)
    exact[:, s > 0] = (u[:, s > 0] - m[s > 0]) / s[s > 0]
    decoded = m + s * np.clip(np.rint(exact), -zero, top)
    if kind.norms == "restored":
        n = n / np.maximum(np.linalg.norm(decoded, axis=1, keepdims=True), 1e-8)
    tie = np.abs(np.abs(exact - np.rint(exact)) - 0.5) < 1e-3
    return n * decoded, n * s, tie


def named(name: str) -> ChannelFormat:
    found = kv_format(name)
    assert isinstance(found, ChannelFormat)
    return found


def round_trip(x: np.ndarray, kind: ChannelFormat, side: Side = "k") -> np.ndarray:
    kind = replace(kind, page_tokens=len(x))
    return kind.decode(kind.encode(x, side), x.shape[1], side)


@pytest.mark.parametrize("dim", [64, 72])
@every_member
def test_reconstruction_is_the_recipes(kind: ChannelFormat, dim: int) -> None:
    x = gaussian(128, dim, seed=kind.bits)
    want, step, tie = recipe(x, kind)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    for side in SIDES:
        error = np.abs(round_trip(x, kind, side) - want)
        assert (error <= 1.1 * HALF * length + np.where(tie, step, 1e-6)).all()


@every_member
def test_awkward_pages_follow_the_recipe(kind: ChannelFormat) -> None:
    for name, x in pages(32, 64).items():
        if name == "huge":
            continue  # lengths beyond float16, which saturate
        want, step, tie = recipe(x, kind)
        length = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        # norms in steps of 2^-24 below the normal range, by directions of length 1
        tolerance = 2 * HALF * length + 2.0**-24 + np.where(tie, step, 0)
        assert (np.abs(round_trip(x, kind) - want) <= tolerance).all(), name


@every_member
def test_bits_per_value_are_codes_norms_and_ranges(kind: ChannelFormat) -> None:
    for dim in (64, 128, 256):
        for tokens in (64, 128, 2048):
            norms = 0 if kind.norms == "none" else 16 / dim
            want = kind.bits + norms + (32 if kind.asym else 16) / tokens
            assert kind.bits_per_value(tokens, dim) == want


def test_names_say_what_is_stored() -> None:
    parts = {f.name: (f.bits, f.asym, f.norms) for f in CHANNELS}
    assert len(parts) == len(set(parts.values())) == 7 * 6
    assert parts["int3nsep"] == (3, True, "restored")
    assert parts["int4nsep-sym"] == (4, False, "restored")
    assert parts["int2nsep-raw"] == (2, True, "raw")
    assert parts["int8nsep-sym-raw"] == (8, False, "raw")
    assert parts["int5pchan"] == (5, False, "none")
    assert parts["int6pchan-asym"] == (6, True, "none")


@pytest.mark.parametrize("name", ["int3nsep", "int2nsep-sym", "int8nsep"])
def test_restored_tokens_keep_their_length_and_raw_ones_need_not(name: str) -> None:
    x = gaussian(128, 64)
    length = np.linalg.norm(x, axis=1)
    restored = round_trip(x, named(name))
    raw = round_trip(x, named(f"{name}-raw"))
    np.testing.assert_allclose(np.linalg.norm(restored, axis=1), length, rtol=1.01 * HALF)
    off = np.abs(np.linalg.norm(raw, axis=1) / length - 1)
    assert off.max() > (0.02 if name != "int8nsep" else 2 * HALF)
    # the directions are the same: the two differ by a factor per token
    factor = np.sum(restored * raw, axis=1) / np.sum(raw * raw, axis=1)
    np.testing.assert_allclose(restored, factor[:, None] * raw, rtol=1e-5, atol=1e-6)


def test_two_symmetric_bits_are_ternary() -> None:
    got = round_trip(gaussian(128, 64), named("int2pchan"))
    peak = np.abs(got).max(axis=0)
    assert (peak > 0).all() and set(np.unique(got / peak)) == {-1, 0, 1}


def test_what_float16_cannot_hold_saturates() -> None:
    x = gaussian(128, 64)
    x[5, 7], x[9, 20], x[11] = 1e6, -3e38, 1e38
    with np.errstate(over="ignore"):
        for kind in CHANNELS:
            got = round_trip(x, kind)
            assert np.isfinite(got).all(), kind.name
    for name in ("int8pchan", "int8pchan-asym"):
        got = round_trip(x, named(name))
        assert got[5, 7] == pytest.approx(65504, rel=0.01)
        assert got[9, 20] == pytest.approx(-65504, rel=0.01)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_code_lies_where_the_drawing_says(bits: int, side: Side) -> None:
    tokens, dim = 64, 48
    kind = kv_format(f"int{bits}pchan-asym:{tokens}")
    assert isinstance(kind, ChannelFormat)
    for t, d in ((0, 0), (5, 3), (17, 1), (63, 47), (30, 20)):
        x = np.zeros((tokens, dim), np.float32)
        x[t, d] = 1  # the largest code of a channel whose others are 0
        packed = kind.encode(x, side)[: kind.codes_nbytes(tokens, dim)]
        row, column, columns = (t, d, dim) if side == "k" else (d, t, tokens)
        step = row // 16 * (columns // 4) + column // 4
        lane = 4 * (row % 16) + column % 4
        want = np.zeros((tokens * dim // 512, bits, 64), np.uint8)
        line = 0
        for width in (w for w in (8, 4, 2, 1) if bits & w):
            j = step % 8
            place = want[step // 8, line + j // (8 // width), lane : lane + 1]
            place |= ((1 << width) - 1) << (width * (j % (8 // width)))
            line += width
        np.testing.assert_array_equal(packed, want.reshape(-1))


# Pages are kept in snapshots: these bytes are layout version 1.
VERSION_1 = {
    "int3nsep": "9368262cdee0f088",
    "int4nsep-sym": "c863e8b6a0dfabf7",
    "int7pchan-asym": "74a6435e359fca72",
}


def ramps() -> np.ndarray:
    """float32 [128, 72] of small integers, so that no order of summing changes a norm."""
    t, d = np.mgrid[:128, :72]
    return ((t * 7 + d * 13 + t * d) % 23 - 11).astype(np.float32)


@pytest.mark.parametrize("name", VERSION_1)
def test_stored_pages_stay_readable(name: str) -> None:
    digest = hashlib.sha256()
    for side in SIDES:
        digest.update(kv_format(name).encode(ramps(), side).tobytes())
    assert digest.hexdigest()[:16] == VERSION_1[name]
