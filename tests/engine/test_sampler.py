"""The sampler keeps and draws what the definitions of its settings say."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.sampler import PENALTY_WINDOW, Sampler, SamplerSpec

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, 1.0, 2.9, -4.0, 0.0], np.float32)
OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def draws(spec: SamplerSpec, logits: np.ndarray, n: int = 400, history: list[int] | None = None):
    sampler = Sampler(spec)
    return [sampler.sample(logits, history or []) for _ in range(n)]


def probabilities(logits: np.ndarray) -> list[float]:
    weights = [math.exp(float(x) - float(max(logits))) for x in logits]
    return [w / sum(weights) for w in weights]


def allowed(logits: np.ndarray, k: int, p: float, least: float) -> list[int]:
    """The ids that may be drawn, by the definitions, one at a time."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[:k] if k else order
    shares = probabilities(logits[order])
    kept, mass = [], 0.0
    for token, share in zip(order, shares, strict=True):
        if mass >= p:
            break
        kept.append(token)
        mass += share
    return [
        t
        for t, share in zip(order, shares, strict=True)
        if t in kept and share >= least * shares[0]
    ]


def test_temperature_0_takes_the_largest_and_the_lowest_id_of_equals() -> None:
    spec = SamplerSpec(temp=0)
    assert draws(spec, LOGITS, 3) == [3, 3, 3]
    assert draws(spec, np.float32([1, 5, 5, 2]), 3) == [1, 1, 1]


def test_a_seed_reproduces_the_stream_and_another_gives_another() -> None:
    assert draws(SamplerSpec(seed=7), LOGITS) == draws(SamplerSpec(seed=7), LOGITS)
    assert draws(SamplerSpec(seed=7), LOGITS) != draws(SamplerSpec(seed=8), LOGITS)
    assert draws(SamplerSpec(), LOGITS) != draws(SamplerSpec(), LOGITS)


@pytest.mark.parametrize("temp", [0.3, 0.8, 1.0, 2.0])
def test_frequencies_are_the_probabilities_at_the_temperature(temp: float) -> None:
    n = 4000
    counts = np.bincount(draws(SamplerSpec(temp=temp, seed=1, **OFF), LOGITS, n), minlength=8)
    for count, share in zip(counts, probabilities(LOGITS / temp), strict=True):
        # five standard deviations of a binomial count
        assert abs(count - n * share) <= 5 * math.sqrt(n * share * (1 - share)) + 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=12),
    st.integers(0, 14),
    st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.01, 0.2, 0.6, 1.0]),
)
def test_only_what_the_definitions_allow_is_drawn(
    values: list[int], k: int, p: float, least: float
) -> None:
    # eighths are exact, and at these settings no sum of shares comes close to an edge by rounding
    logits = np.array(values, np.float32) / 8
    spec = SamplerSpec(temp=5.0, top_k=k, top_p=p, min_p=least, seed=3)
    may = allowed(logits, k, p, least)
    assert set(draws(spec, logits, 60)) <= set(may)
    if len(may) == 1:
        assert set(draws(spec, logits, 5)) == set(may)


@pytest.mark.parametrize(
    "spec",
    [
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 8},
        {"top_k": 100},
        {"top_p": 0.1},
        {"top_p": 0.7},
        {"top_p": 0.95},
        {"min_p": 0.05},
        {"min_p": 0.5},
        {"min_p": 1.0},
        {"top_k": 5, "top_p": 0.8, "min_p": 0.2},
    ],
    ids=str,
)
def test_all_that_the_definitions_allow_is_drawn(spec: dict[str, Any]) -> None:
    full = OFF | spec
    # hot enough that whatever is kept comes up in 400 draws: the cuts come before the temperature
    seen = set(draws(SamplerSpec(temp=50.0, seed=5, **full), LOGITS))
    assert seen == set(allowed(LOGITS, int(full["top_k"]), full["top_p"], full["min_p"]))


def test_ties_at_the_edge_of_top_k_go_to_the_lower_ids() -> None:
    logits = np.float32([1, 4, 1, 1, 4, 1])
    assert set(draws(SamplerSpec(temp=9.0, seed=0, **(OFF | {"top_k": 4})), logits)) == {0, 1, 2, 4}


def test_the_penalty_moves_recent_tokens_toward_and_below_zero() -> None:
    def greedy(penalty: float, history: list[int]) -> int:
        return draws(SamplerSpec(temp=0, repeat_penalty=penalty), LOGITS, 1, history)[0]

    assert greedy(1.0, [3, 3]) == 3
    assert greedy(1.1, [3]) == 5  # 3.0 / 1.1 < 2.9
    assert greedy(1.1, [3, 3, 5]) == 3  # once, however often it came: 3.0 / 1.1 > 2.9 / 1.1
    assert greedy(2.0, [3, 5]) == 0
    assert greedy(0.5, [0]) == 0  # below 1 it is a reward
    negative = np.float32([-1.0, -1.5])
    assert draws(SamplerSpec(temp=0, repeat_penalty=2.0), negative, 1, [0]) == [1]


def test_the_penalty_forgets_what_lies_further_back_than_its_window() -> None:
    spec = SamplerSpec(temp=0, repeat_penalty=1.5)
    assert draws(spec, LOGITS, 1, [3] + [6] * (PENALTY_WINDOW - 1)) == [5]
    assert draws(spec, LOGITS, 1, [3] + [6] * PENALTY_WINDOW) == [3]


def test_the_logits_are_left_alone() -> None:
    logits = LOGITS.copy()
    draws(SamplerSpec(repeat_penalty=1.3), logits, 10, [0, 1, 2])
    np.testing.assert_array_equal(logits, LOGITS)


@pytest.mark.parametrize("penalty", [1e-200, 1e200])
def test_an_absurd_penalty_is_no_trouble(penalty: float) -> None:
    with np.errstate(over="raise", invalid="raise"):
        spec = SamplerSpec(seed=0, repeat_penalty=penalty)
        seen = set(draws(spec, LOGITS, 20, [3, 6]))
    assert seen == {3} if penalty < 1 else 6 not in seen


@pytest.mark.parametrize("temp", [1e-300, 1e-45, 1e-6])
def test_a_tiny_temperature_is_greedy(temp: float) -> None:
    assert set(draws(SamplerSpec(temp=temp), 100 * LOGITS, 20)) == {3}


def test_huge_logits_and_forbidden_tokens_are_no_trouble() -> None:
    with np.errstate(over="raise", invalid="raise"):
        logits = np.float32([-np.inf, 3e38, -3e38, -np.inf])
        assert set(draws(SamplerSpec(seed=0), logits, 20)) == {1}
        assert set(draws(SamplerSpec(seed=0, temp=0), logits, 2)) == {1}


@pytest.mark.parametrize("temp", [0.0, 0.8])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float, temp: float) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(InputError, match="not finite"):
        draws(SamplerSpec(temp=temp), logits, 1)


def test_temperature_sharpens_steadily() -> None:
    shares = [
        np.mean(np.array(draws(SamplerSpec(temp=temp, seed=2, **OFF), LOGITS, 2000)) == 3)
        for temp in (0.1, 0.5, 1.0, 4.0)
    ]
    assert all(cool > warm for cool, warm in pairwise(shares))


REFUSED = {
    "temp": [-0.1, math.nan, math.inf],
    "top_k": [-1],
    "top_p": [0.0, -1.0, 1.0001, math.nan],
    "min_p": [-0.01, 1.01, math.nan],
    "repeat_penalty": [0.0, -1.0, math.inf, math.nan],
    "seed": [-1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in REFUSED.items() for v in vs])
def test_a_setting_out_of_range_is_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        SamplerSpec(**{name: value})
    message = str(caught.value)
    shown = "temperature" if name == "temp" else name.replace("_", "-")
    assert message.startswith(f"{shown} {value}: must be ") and "\n" not in message
