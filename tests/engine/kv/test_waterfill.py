"""Water-filled types: widths are the best there are, pages are the recipe in the drawn bytes."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from rows import gaussian

from engine.kv.format import Side
from engine.kv.formats import ALL_KV_FORMATS, kv_format
from engine.kv.formats.channels import padded_dim
from engine.kv.formats.waterfill import (
    WATER_FILLED,
    WaterFilledFormat,
    group_channels,
    water_fill,
)

SIDES: tuple[Side, Side] = ("k", "v")
every_member = pytest.mark.parametrize("kind", WATER_FILLED, ids=[f.name for f in WATER_FILLED])


def named(name: str) -> WaterFilledFormat:
    kind = kv_format(name)
    assert isinstance(kind, WaterFilledFormat)
    return kind


def round_trip(x: np.ndarray, kind: WaterFilledFormat, side: Side, weights=None) -> np.ndarray:
    return kind.decode(kind.encode(x, side, weights), x.shape[-1], side)


class Reader:
    """A page read byte by byte, as the drawing says."""

    def __init__(self, page: np.ndarray, kind: WaterFilledFormat, dim: int, side: Side) -> None:
        self.page, self.side, self.tokens = page, side, kind.page_tokens
        self.dim = dim = padded_dim(dim)
        at = self.tokens * dim * kind.bits // 8
        planes = page[at : at + 3 * dim // 8].reshape(3, -1)
        bit = [[planes[i, d // 8] >> d % 8 & 1 for d in range(dim)] for i in range(3)]
        self.widths = [int(bit[0][d]) + 2 * int(bit[1][d]) + 4 * int(bit[2][d]) for d in range(dim)]
        self.order = sorted(range(dim), key=lambda d: (-self.widths[d], d))
        at += 3 * dim // 8
        self.norms = page[at : at + self.tokens].astype(float)
        self.m, self.s = page[at + self.tokens :][: 2 * dim].reshape(2, dim).astype(float)
        self.pairs = page[-12:].copy().view(np.float16).astype(float)
        self.group = group_channels(self.tokens, side)

    def code(self, t: int, position: int) -> int:
        """The code of a token and a sorted channel."""
        first = position // self.group * self.group
        widths = [self.widths[self.order[c]] for c in range(0, first + 1, self.group)]
        at = self.group * self.tokens * sum(widths[:-1]) // 8
        inside = position - first
        if self.side == "k":
            step, lane = inside // 4 * (self.tokens // 16) + t // 16, 4 * (t % 16) + inside % 4
        else:
            step, lane = t // 4, 4 * inside + t % 4
        width, code, line = widths[-1], 0, 0
        at += step // 8 * 64 * width
        for plane in (4, 2, 1):
            if width & plane:
                per_line, k = 8 // plane, step % 8
                byte = int(self.page[at + 64 * (line + k // per_line) + lane])
                code |= (byte >> plane * (k % per_line) & (1 << plane) - 1) << line
                line += plane
        return code

    def value(self, t: int, position: int) -> float:
        first_n, step_n, first_m, step_m, first_s, step_s = self.pairs
        n = 2 ** (first_n + (self.norms[t] - 1) * step_n) if self.norms[t] else 0
        s = 2 ** (first_s + (self.s[position] - 1) * step_s) if self.s[position] else 0
        top = 2 ** self.widths[self.order[position]] - 1
        m = first_m + self.m[position] * step_m
        return n * (m + s * (self.code(t, position) - top / 2))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("bits", "tokens"), [(2, 128), (3, 128), (4, 128), (3, 64), (3, 96)])
def test_a_page_says_what_the_drawing_says(bits: int, tokens: int, side: Side) -> None:
    kind, dim = named(f"int{bits}wf:{tokens}"), 72
    x = gaussian(tokens, dim, seed=bits)
    page = kind.encode(x, side)
    got, reader = kind.decode(page, dim, side), Reader(page, kind, dim, side)
    for t, position in itertools.product((0, 5, 17, tokens - 1), range(padded_dim(dim))):
        if (channel := reader.order[position]) < dim:
            assert got[t, channel] == pytest.approx(reader.value(t, position), rel=1e-5, abs=1e-6)


def cost(reach: np.ndarray, widths: np.ndarray) -> float:
    return float(np.sum(np.square(reach) * 4.0**-widths))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_better_widths_exist(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for _ in range(20):
        reach = np.exp(rng.normal(0, 1.5, 4))
        widths = water_fill(reach, bits, 1)
        others = itertools.product(range(8), repeat=4)
        best = min(cost(reach, np.array(w)) for w in others if sum(w) == 4 * bits)
        assert widths.sum() == 4 * bits and cost(reach, widths) == pytest.approx(best)


@pytest.mark.parametrize("group", [4, 8, 16])
def test_groups_share_a_width_and_cost_little(group: int) -> None:
    reach = np.exp(np.random.default_rng(group).normal(0, 1, (3, 128)))
    free, shared = water_fill(reach, 3, 1), water_fill(reach, 3, group)
    assert (shared.sum(axis=-1) == 3 * 128).all()
    for widths in shared:
        assert all(np.count_nonzero(widths == w) % group == 0 for w in range(8))
    assert cost(reach, free) < cost(reach, shared) < 1.15 * cost(reach, free)


def test_channels_that_reach_further_are_never_narrower() -> None:
    for reach in (np.zeros(64), np.ones(64), np.geomspace(1e-9, 1, 64), np.arange(64.0) // 20):
        widths = water_fill(reach, 3, 4)
        assert widths.sum() == 3 * 64
        below, above = np.nonzero(reach[:, None] < reach[None, :])
        assert (widths[below] <= widths[above]).all()


@pytest.mark.parametrize("dim", [64, 72, 128])
@every_member
def test_values_are_within_half_a_step(kind: WaterFilledFormat, dim: int) -> None:
    x = gaussian(128, dim, seed=dim)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    u = x / length
    for side in SIDES:
        got = round_trip(x, kind, side)
        reader = Reader(kind.encode(x, side), kind, dim, side)
        widths = np.array(reader.widths[:dim])
        reach = u.max(axis=0) - u.min(axis=0)
        # half a step, the half that rounding the middle may cost, and rounding of the step
        middle = 0.5 * reader.pairs[3]
        half = 0.5 * reach * 2.0**-widths * 2 ** reader.pairs[5] + middle
        # compare directions: the stored norm restores the length of what was decoded
        scale = np.linalg.norm(got, axis=1, keepdims=True)
        for t in range(0, 128, 13):
            gain = scale[t] / length[t]
            assert gain == pytest.approx(1, abs=0.51 * (2 ** reader.pairs[1] - 1) + 1e-4)
            raw = [reader.value(t, p) for p in range(padded_dim(dim))]
            direction = np.zeros(padded_dim(dim))
            norm = 2 ** (reader.pairs[0] + (reader.norms[t] - 1) * reader.pairs[1])
            direction[reader.order] = np.array(raw) / norm
            assert (np.abs(direction[:dim] - u[t]) <= half + 1e-5).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_beats_equal_widths_by_far_where_channels_differ(bits: int) -> None:
    x = gaussian(128, 64, seed=7) * np.exp(np.random.default_rng(8).normal(0, 1, 64))
    x = x.astype(np.float32)
    plain, filled = kv_format(f"int{bits}nsep"), named(f"int{bits}wf")
    for side in SIDES:
        even = np.square(plain.decode(plain.encode(x, side), 64, side) - x).mean()
        assert np.square(round_trip(x, filled, side) - x).mean() < 0.6 * even
    assert filled.bits_per_value(128, 64) < plain.bits_per_value(128, 64)


def test_weights_move_bits_to_the_channels_that_count() -> None:
    x = gaussian(2, 128, 64, seed=3)
    weights = np.exp(np.random.default_rng(4).normal(0, 1, (2, 64))).astype(np.float32)
    kind, plain = named("int3wfq"), named("int3wf")

    def error(y: np.ndarray) -> float:
        return float(np.square((y - x) * weights[:, None]).mean())

    assert error(round_trip(x, kind, "k", weights)) < 0.7 * error(round_trip(x, plain, "k"))
    ones = kind.encode(x, "k", np.ones((2, 64), np.float32))
    np.testing.assert_array_equal(ones, kind.encode(x, "k"))
    np.testing.assert_array_equal(ones, plain.encode(x, "k"))


@pytest.mark.parametrize(("name", "side"), [("int3wfq", "v"), ("int3wf", "k"), ("int3wf", "v")])
def test_weights_count_for_keys_of_a_weighted_type_only(name: str, side: Side) -> None:
    x, weights = gaussian(128, 64), np.linspace(0, 9, 64, dtype=np.float32)
    kind = named(name)
    np.testing.assert_array_equal(kind.encode(x, side, weights), kind.encode(x, side))


def test_weighted_types_say_so() -> None:
    weighted = [f.name for f in ALL_KV_FORMATS.values() if f.weighted]
    assert weighted == ["int4wfq", "int3wfq", "int2wfq"]


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e30])
def test_weights_of_any_size_leave_a_page_finite(weight: float) -> None:
    x, weights = gaussian(128, 64), np.full(64, weight, np.float32)
    weights[::2] = 0
    assert np.isfinite(round_trip(x, named("int2wfq"), "k", weights)).all()


def test_the_largest_values_of_the_tail_stay_finite() -> None:
    x = gaussian(128, 64)
    x[5, 7], x[9, 20], x[11] = 1e30, -3e38, 3e38
    for kind in WATER_FILLED:
        for side in SIDES:
            assert np.isfinite(round_trip(x, kind, side)).all()


@every_member
def test_constant_channels_cost_nothing_and_come_back(kind: WaterFilledFormat) -> None:
    x = np.tile(np.where(np.arange(64) % 2, 1, -2).astype(np.float32), (128, 1))
    x[:, 5] = np.linspace(-1, 1, 128)
    for side in SIDES:
        got = round_trip(x, kind, side)
        np.testing.assert_allclose(got, x, atol=0.02)
        assert Reader(kind.encode(x, side), kind, 64, side).widths[5] == 7


@every_member
def test_bits_per_value_count_all_metadata(kind: WaterFilledFormat) -> None:
    for dim, tokens in ((64, 128), (128, 128), (256, 512), (64, 64)):
        pairs = 6 * 16 / (tokens * dim)
        want = kind.bits + (3 + 8 + 8) / tokens + 8 / dim + pairs
        assert kind.bits_per_value(tokens, dim) == pytest.approx(want, abs=1e-12)


@every_member
def test_tokens_of_unlike_length_do_not_disturb_each_other(kind: WaterFilledFormat) -> None:
    # the norm of a token is its own: another's length moves it by the rounding of its code alone
    x = gaussian(128, 64)
    loud = x.copy()
    loud[7] *= 100
    for side in SIDES:
        a, b = (np.delete(round_trip(y, kind, side), 7, axis=0) for y in (x, loud))
        np.testing.assert_allclose(a, b, rtol=0.05, atol=1e-6)


# Pages are kept in snapshots: these bytes are layout version 1.
VERSION_1 = {"int3wf": "ae3f9c707480fe2d", "int2wfq:96": "a18a11f6b60465ed"}


@pytest.mark.parametrize("name", VERSION_1)
def test_stored_pages_stay_readable(name: str) -> None:
    t, d = np.mgrid[: named(name).page_tokens, :72]
    x = ((t * 7 + d * 13 + t * d) % 23 - 11).astype(np.float32) * (1 + d % 5)
    weights = (1 + np.arange(72) % 3).astype(np.float32)
    digest = hashlib.sha256()
    for side in SIDES:
        digest.update(named(name).encode(x.astype(np.float32), side, weights).tobytes())
    assert digest.hexdigest()[:16] == VERSION_1[name]


@pytest.mark.parametrize(("old", "new"), [("int4wfq", "int2wfq"), ("int3wfq", "int2wfq:128")])
@pytest.mark.parametrize("dim", [64, 80])
def test_a_page_of_weighted_keys_tells_what_its_queries_weighed(
    old: str, new: str, dim: int
) -> None:
    rng = np.random.default_rng(dim)
    scale, weights = 10 ** rng.uniform(-0.5, 0.5, (2, 4, dim)).astype(np.float32)
    x = rng.standard_normal((4, 128, dim)).astype(np.float32) * scale[:, None]
    page = named(old).encode(x, "k", weights)
    values, squares = named(old).decode(page, dim, "k"), named(old).power(page, dim, "k")
    assert squares is not None

    def loss(by: np.ndarray | None) -> float:
        error = round_trip(values, named(new), "k", by) - x
        return float(np.square(error * weights[:, None]).sum())

    assert loss(np.sqrt(squares)) < 1.1 * loss(weights) < 0.7 * loss(None)


def test_other_pages_tell_nothing_of_queries() -> None:
    cases: tuple[tuple[str, Side], ...] = (
        ("int3wf", "k"), ("int3wfq", "v"), ("bf16", "k"), ("int3nsep", "k"),
    )  # fmt: skip
    for name, side in cases:
        kind = kv_format(name)
        page = kind.encode(np.zeros((128, 64), np.float32), side)
        assert kind.power(page, 64, side) is None
