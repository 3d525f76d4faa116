"""Log masses and divergences of whole vocabularies are those of float64."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu import CpuOps
from engine.reference import ReferenceOps

CPU, REFERENCE = CpuOps(), ReferenceOps()
WIDTHS = (1, 5, 16, 33, 4096, 32003)


def logits(n: int, seed: int, spread: float = 4.0) -> np.ndarray:
    rng = np.random.default_rng([seed, n])
    return rng.normal(-3, spread, (5, n)).astype(np.float32)


@pytest.mark.parametrize("n", WIDTHS)
def test_log_masses_are_those_of_float64(n: int) -> None:
    x = logits(n, 0)
    np.testing.assert_allclose(CPU.log_masses(x), REFERENCE.log_masses(x), rtol=0, atol=5e-7)


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("distance", (1e-3, 0.1, 3.0))
def test_divergences_are_those_of_float64(n: int, distance: float) -> None:
    base = logits(n, 0)
    other = base + np.float32(distance) * logits(n, 1, 1.0)
    want, got = REFERENCE.divergences(base, other), CPU.divergences(base, other)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_a_shift_of_all_logits_is_no_divergence() -> None:
    base = logits(32003, 2)
    assert CPU.divergences(base, base + np.float32(8))[:, 0].max() < 1e-6


def test_equal_rows_diverge_by_exactly_nothing() -> None:
    kld, p, q = CPU.divergences(logits(32003, 3), logits(32003, 3)).T
    assert (kld == 0).all() and (p == q).all()


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("where", (3, 36))
def test_what_is_not_finite_is_seen(value: float, where: int) -> None:
    x = logits(37, 4)
    broken = x.copy()
    broken[2, where] = value
    kept = [0, 1, 3, 4]
    assert np.isfinite(CPU.log_masses(broken)).tolist() == [row in kept for row in range(5)]
    for pair in ((x, broken), (broken, x)):
        assert np.isfinite(CPU.divergences(*pair)[:, 0]).tolist() == [r in kept for r in range(5)]
