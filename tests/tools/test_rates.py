"""Intervals and tests of rates agree with the textbooks and with SciPy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tools.rates import mcnemar, wilson


def test_wilsons_interval_is_the_textbooks() -> None:
    # Wilson (1927) for 8 of 10 and 0 of 16, z = 1.96
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert wilson(0, 16) == pytest.approx((0.0, 0.1936), abs=5e-5)
    assert wilson(16, 16)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


@given(n=st.integers(1, 500), data=st.data())
def test_wilsons_ends_solve_the_score_equation(n: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, n))
    for end in wilson(passed, n):
        distance = abs(passed / n - end)
        assert distance <= 1.96 * math.sqrt(end * (1 - end) / n) + 1e-6


@given(n=st.integers(1, 500), data=st.data())
def test_wilsons_interval_is_scipys(n: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, n))
    ends = stats.binomtest(passed, n).proportion_ci(method="wilson")
    assert wilson(passed, n) == pytest.approx((ends.low, ends.high), abs=1e-12)


@given(lost=st.integers(0, 200), gained=st.integers(0, 200))
def test_mcnemars_test_is_the_exact_test_of_a_fair_coin(lost: int, gained: int) -> None:
    p = mcnemar(lost, gained)
    assert p == mcnemar(gained, lost)
    n = lost + gained
    assert p == pytest.approx(stats.binomtest(lost, n).pvalue if n else 1.0, rel=1e-9)
