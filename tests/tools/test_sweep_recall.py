"""Recall in a grid: the same questions for every cell, and paired answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from letters import TEXT, letters_model

from tools.recall.answer import Answer, NoAnswer
from tools.recall.random_bodies import RandomBodies
from tools.recall_pairs import PairedRecall, paired_recall, recall_interval
from tools.results import Cell, Pair
from tools.sweep import Grid, Sweep
from tools.sweep_recall import Recall, RecallSettings
from tools.windows import Settings

SETTINGS = RecallSettings(RandomBodies(functions=4, value_len=3))
BODIES = {f.name: f.body for f in SETTINGS.bodies.corpus().functions}
BASE, OTHER = ("f16", "f16"), ("q8_0", "q4_0")


class Scripted:
    """Repeats as many lines of a function as `script` says of its number."""

    def __init__(self, script: Callable[[int], int | None]) -> None:
        self._script = script
        self.about: dict[str, Any] = {}

    def __call__(self, message: str) -> Answer:
        asked = message.rpartition("\n---\n")[2]
        number, body = next((i, b) for i, (n, b) in enumerate(BODIES.items()) if n in asked)
        lines = self._script(number)
        if lines is None:
            raise NoAnswer("no room")
        return Answer("\n".join(body[:lines]), "stop")


def recall(script: Callable[[int], int | None]) -> Recall:
    return Recall(SETTINGS, lambda pair: Scripted(script))


def test_figures_are_those_of_minikv_recall() -> None:
    values = recall(lambda number: 5 * (number + 1)).measure(BASE)
    assert list(values["recall_targets"].values()) == [5, 10, 15, 20]
    assert (values["recall"], values["recall_lines"]) == (3 / 4, 50 / 80)
    assert (values["recall_passed"], values["recall_scored"], values["recall_errors"]) == (3, 4, 0)


def test_a_target_without_answer_is_counted_and_is_no_failure() -> None:
    values = recall(lambda number: 20 if number else None).measure(BASE)
    assert (values["recall"], values["recall_scored"], values["recall_errors"]) == (1, 3, 1)
    first = next(iter(BODIES))
    assert values["recall_targets"][first] is None
    nothing = recall(lambda number: None).measure(BASE)
    assert nothing["recall"] is None and nothing["recall_lines"] is None


def test_every_pair_is_asked_through_a_cache_of_its_own() -> None:
    pairs: list[Pair] = []

    def connect(pair: Pair) -> Scripted:
        pairs.append(pair)
        return Scripted(lambda number: 20)

    grid = Grid(("q8_0",), ("q4_0",), metrics=("recall",))
    windows = Settings("llama", 64, 2)
    sweep = Sweep(letters_model(), TEXT, windows, grid, Recall(SETTINGS, connect))
    cells = [sweep.measure(pair) for pair in grid.pairs(0)]
    assert sorted(pairs) == sorted(grid.pairs(0))
    assert all(cell.values["recall"] == 1 for cell in cells)


def test_what_is_asked_is_part_of_the_identity() -> None:
    grid, windows = Grid(("q8_0",), ("q4_0",), metrics=("recall",)), Settings("llama", 64, 2)
    told = set()
    for bodies in ({}, {"functions": 3}, {"value_len": 4}, {"confusable": 2}, {"seed": 1}):
        settings = replace(SETTINGS, bodies=replace(SETTINGS.bodies, **bodies))
        asked = Recall(settings, lambda pair: Scripted(lambda number: 20))
        told.add(Sweep(letters_model(), TEXT, windows, grid, asked).identity()["recall"])
    assert len(told) == 5


def cell(pair: Pair, matched: list[int | None]) -> Cell:
    asked = [lines for lines in matched if lines is not None]
    values = {
        "recall_targets": {f"f{i}": lines for i, lines in enumerate(matched)},
        "recall_passed": sum(lines >= 8 for lines in asked),
        "recall_scored": len(asked),
    }
    return Cell(pair, values, np.zeros(0))


def test_cells_are_paired_with_the_reference_target_by_target() -> None:
    base = cell(BASE, [20, 20, 20, 20, 20, 20, 0, None])
    other = cell(OTHER, [20, 0, 4, 6, 2, 7, 12, 20])
    found = paired_recall([other, base], BASE)
    assert list(found) == [OTHER]
    p = found[OTHER]
    assert (p.n, p.lost, p.won) == (7, 5, 1)
    # six tosses of a fair coin, at least five of one side
    assert p.p == pytest.approx(2 * (6 + 1) / 64)
    difference = np.array([0, -20, -16, -14, -18, -13, 12])
    assert p.lines == pytest.approx(difference.mean())
    assert p.error == pytest.approx(difference.std(ddof=1) / np.sqrt(7))
    # of the 64 signs six ranks may have, 2 x 2 are at least as one-sided: sums of 0 and of 1
    assert p.p_lines == pytest.approx(4 / 64)


def test_equal_cells_have_no_p_and_nothing_in_common_no_pair() -> None:
    base = cell(BASE, [20, None])
    same = PairedRecall(1, 0, 0, None, 0.0, None, None)
    assert paired_recall([base, cell(OTHER, [20, 3])], BASE) == {OTHER: same}
    assert paired_recall([base, cell(OTHER, [None, 3])], BASE) == {}
    assert paired_recall([cell(OTHER, [20])], BASE) == {}


def test_a_pass_rate_has_wilsons_interval() -> None:
    assert recall_interval(cell(BASE, [20] * 8 + [0] * 2)) == pytest.approx((0.4902, 0.9433), 1e-3)
