"""hqq: the half-quadratic recipe in the drawn bytes, and what it is for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from rows import gaussian, pages

from engine.kv.formats import kv_format
from engine.kv.formats.hqq import HQQ, HqqFormat

every_member = pytest.mark.parametrize("kind", HQQ, ids=[f.name for f in HQQ])


def named(name: str) -> HqqFormat:
    kind = kv_format(name)
    assert isinstance(kind, HqqFormat)
    return kind


def tuned(x: np.ndarray, bits: int) -> tuple[float, float]:
    """s and m of one group, value by value: HQQ to the letter."""
    top = 2**bits - 1
    span = x.max() - x.min()
    s = max(float(np.float16(np.float32(span) / np.float32(top))), 2.0**-24 * (span > 0))
    if s == 0:
        return 0.0, float(np.float16(x.min()))
    z = -float(x.min()) / s
    for _ in range(20):
        sums = []
        for value in map(float, x):
            q = min(max(round(value / s + z), 0), top)
            e = value - s * (q - z)
            kept = abs(e) - abs(e) ** -0.3 / 10 if e else 0
            sums.append(q - (value - np.sign(e) * max(kept, 0)) / s)
        z = sum(sums) / len(sums)
    return s, float(np.float16(-s * z))


@pytest.mark.parametrize("size", [0.1, 1, 20])
@pytest.mark.parametrize("dim", [64, 72])
@pytest.mark.parametrize("name", ["hqq2:64", "hqq3:32", "hqq4:32", "hqq8:128"])
def test_a_row_is_the_recipes_in_the_drawn_bytes(name: str, dim: int, size: float) -> None:
    kind, x = named(name), gaussian(3, dim, seed=dim) * np.float32(size)
    groups = -(-dim // kind.group)
    for row in x:
        packed = kind.encode(row[None], "k")
        s, m = packed[: 4 * groups].view(np.float16).reshape(2, groups).astype(float)
        lines = packed[4 * groups :].reshape(kind.bits, dim // 8)
        for g in range(groups):
            values = row[g * kind.group : (g + 1) * kind.group]
            step, minimum = tuned(values, kind.bits)
            assert s[g] == step
            # by float16 and by the limit of a move, which is 4 % off
            assert abs(m[g] - minimum) <= 0.02 * step + 2.0**-10 * abs(minimum)
            for i, value in enumerate(values, g * kind.group):
                step, column = divmod(i, dim // 8)
                code, first = 0, 0
                for width in (w for w in (8, 4, 2, 1) if kind.bits & w):
                    line, shift = divmod(step * width, 8)
                    code |= (int(lines[first + line, column]) >> shift & (1 << width) - 1) << first
                    first += width
                exact = (float(value) - m[g]) / s[g]
                assert abs(code - min(max(exact, 0), 2**kind.bits - 1)) <= 0.5 + 1e-3


@every_member
def test_values_are_within_a_step(kind: HqqFormat) -> None:
    # half a step of rounding; tuning moves the range by no more than another half
    for name, x in pages(32, 72).items():
        groups = [x[:, i : i + kind.group] for i in range(0, 72, kind.group)]
        step = np.concatenate(
            [np.broadcast_to(np.ptp(g, axis=1, keepdims=True), g.shape) for g in groups], axis=1
        ) / (2**kind.bits - 1)
        got = kind.decode(kind.encode(x, "k"), 72, "k")
        rounding = 2.0**-11 * (np.abs(x) + 2**kind.bits * step) + 2.0**-24 * 2**kind.bits
        assert (np.abs(got - x) <= 1.01 * step + rounding).all(), name


@pytest.mark.parametrize("name", ["hqq2:64", "hqq3:32", "hqq4:32"])
def test_tuning_lowers_the_error_that_it_minimizes(name: str) -> None:
    kind, x = named(name), np.random.default_rng(0).standard_normal((400, 64)).astype(np.float32)
    groups = x.reshape(400, -1, kind.group)
    low, top = groups.min(axis=-1, keepdims=True), 2**kind.bits - 1
    s = (groups.max(axis=-1, keepdims=True) - low) / top
    plain = (low + s * np.rint((groups - low) / s)).reshape(x.shape)

    def loss(y: np.ndarray) -> float:
        return float((np.abs(y - x) ** 0.7).mean())

    assert loss(kind.decode(kind.encode(x, "k"), 64, "k")) < 0.99 * loss(plain)


def test_an_offset_group_loses_no_levels() -> None:
    # what a minimum in bfloat16 would do: it is off by up to 1/256 of itself
    x = (100 + np.random.default_rng(1).uniform(0, 1, (50, 64))).astype(np.float32)
    error = np.abs(named("hqq4:32").decode(named("hqq4:32").encode(x, "k"), 64, "k") - x)
    assert error.max() < 1.1 / 15


@every_member
def test_bits_per_value_are_codes_and_a_range_per_group(kind: HqqFormat) -> None:
    assert kind.bits_per_value(128, 128) == kind.bits + 32 / kind.group
    groups = -(-80 // kind.group)
    assert kind.row_nbytes(80) == 10 * kind.bits + 4 * groups


def test_the_named_members_are_those_of_the_grid() -> None:
    assert {(f.bits, f.group) for f in HQQ} == {(b, g) for b in (2, 3, 4, 8) for g in (32, 64, 128)}


def test_stored_rows_stay_readable() -> None:
    # Pages are kept in snapshots: these bytes are layout version 1.
    t, d = np.mgrid[:32, :72]
    x = ((t * 7 + d * 13 + t * d) % 23 - 11).astype(np.float32)
    packed = named("hqq3:32").encode(x, "k")
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == "25c9905a2e51b009"
