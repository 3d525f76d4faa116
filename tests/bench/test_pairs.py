"""Pairs of cache types run in turn at the same depth, and are compared round by round."""

from __future__ import annotations

from typing import Any, cast

import pytest

from bench.pairs import Runner, figures, measure, table
from engine import Session


class FakeSession:
    """Notes how many tokens it held and was given; `truncate` falls back to a page of 4."""

    def __init__(self, log: list[tuple[str, int, int]], name: str) -> None:
        self.log, self.name = log, name
        self.tokens: list[int] = []
        self.decoder: Any = type("Decoder", (), {"spec": type("Spec", (), {"n_vocab": 9})})

    def extend(self, tokens: list[int]) -> None:
        self.log.append((self.name, len(self.tokens), len(tokens)))
        self.tokens = [*self.tokens, *tokens]

    def truncate(self, n: int) -> None:
        del self.tokens[n // 4 * 4 :]


def runners(names: str) -> tuple[list[Runner], list[tuple[str, int, int]]]:
    log: list[tuple[str, int, int]] = []
    return [Runner(name, cast(Session, FakeSession(log, name))) for name in names], log


@pytest.mark.parametrize("depth", [0, 8, 10])
def test_every_round_times_all_at_the_same_depth_and_begins_with_another(depth: int) -> None:
    pairs, log = runners("abc")
    measure(pairs, depth, prompt=5, steps=2, rounds=3)
    prompts = [(name, at) for name, at, given in log if given == 5]
    assert prompts == [(name, depth) for name in "abc" + "abc" + "bca" + "cab"]
    steps = [at for name, at, given in log if given == 1]
    assert steps == 12 * [depth + 5, depth + 6]
    assert all(len(one.prompts) == len(one.tokens) == 3 for one in pairs)


def test_ratios_are_of_the_same_round_and_of_the_best() -> None:
    assert figures([2.0, 4.0, 8.0], [1.0, 4.0, 16.0]).split() == [
        "4000.00",
        "1.000",
        "1000.00",
        "2.000",
    ]
    assert figures([], []).split() == ["-"] * 4


def test_a_line_per_pair() -> None:
    pairs, _ = runners("ab")
    measure(pairs, 4, prompt=3, steps=0, rounds=1)
    lines = table(pairs)
    assert [line.split()[0] for line in lines[2:]] == ["a", "b"]
    assert lines[2].split()[2] == "1.000" and lines[2].split()[-4:] == ["-"] * 4
