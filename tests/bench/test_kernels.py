"""Kernels are timed from cold memory to finished results, and counted rightly."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from bench import kernels
from bench.kernels import Case, attention_case, matrix_case, seconds
from engine.reference import ReferenceOps


class LazyOps(ReferenceOps):
    """A backend that computes when the result is fetched, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def to_host(self, x: Any) -> np.ndarray:
        self.now += 0.01
        return np.zeros(1, np.float32)


class Sweeps:
    count = 0

    def sweep(self) -> float:
        self.count += 1
        return 0.0


@pytest.mark.parametrize("cold", [True, False])
def test_a_round_waits_for_results_and_divides_by_its_calls(
    cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ROUNDS", 3)
    results: list[int] = []

    def call() -> object:
        results.append(1)
        return object()

    sweeps: Any = Sweeps()
    took = seconds(LazyOps(monkeypatch), Case("c", lambda ops: [call] * 4, 0, cold=cold), sweeps)
    assert took == pytest.approx(0.01)
    assert len(results) == 1 + 3 * 4
    assert sweeps.count == (3 if cold else 0)


def test_long_calls_are_repeated_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LONG", 0.01)
    runs: list[int] = []

    def call() -> object:
        runs.append(1)
        return object()

    sweeps: Any = Sweeps()
    seconds(LazyOps(monkeypatch), Case("c", lambda ops: [call], 0), sweeps)
    assert len(runs) == 1 + kernels.FEWEST


def test_single_tokens_stream_several_matrices_and_prompts_one() -> None:
    one, many = (matrix_case("Q4_1", 576, 1536, tokens) for tokens in (1, 512))
    calls = one.prepare(ReferenceOps())
    weight = 576 * 1536 // 32 * 20
    assert (len(calls) - 1) * weight < kernels.STREAMED <= len(calls) * weight
    assert one.nbytes == weight + 4 * (576 + 1536)
    assert one.operations == 2 * 576 * 1536
    assert len(many.prepare(ReferenceOps())) == 1
    assert many.operations == 512 * one.operations


def test_attention_counts_two_products() -> None:
    assert attention_case("bf16", 128).operations == 2 * (2 * 128 * 12 * 128 * 8192)
