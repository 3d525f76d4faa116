"""Recall of a grid's cells beside the reference cell: the same targets, asked of both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tools.extras import extra
from tools.recall.outcome import wilson
from tools.recall.scoring import PASS
from tools.results import Cell, Pair


@dataclass(frozen=True)
class PairedRecall:
    """A cell beside the reference cell over the `n` targets that both have answered.

    `lost` targets pass under the reference alone, `won` under the cell alone; `p` is McNemar's
    exact test of the two counts.  `lines` is the mean difference of matched lines per target,
    `error` its standard error, and `p_lines` Wilcoxon's signed-rank test of it.  What cannot be
    said, of one target or where nothing differs, is None.
    """

    n: int
    lost: int
    won: int
    p: float | None
    lines: float
    error: float | None
    p_lines: float | None


def recall_interval(cell: Cell) -> tuple[float, float]:
    """Wilson's 95 % interval of the cell's pass rate."""
    return wilson(cell.values["recall_passed"], cell.values["recall_scored"])


def paired_recall(cells: list[Cell], base: Pair) -> dict[Pair, PairedRecall]:
    """Every other cell with recall by name; empty if that of `base` is not measured."""
    asked = {cell.pair: _matched(cell) for cell in cells if "recall_targets" in cell.values}
    reference = asked.pop(base, {})
    found = ((pair, _paired(matched, reference)) for pair, matched in asked.items())
    return {pair: each for pair, each in found if each is not None}


def recall_record(cell: Cell, beside: PairedRecall | None) -> dict[str, Any]:
    """The cell's statistics of recall as flat JSON values; empty if it has none."""
    if "recall_targets" not in cell.values:
        return {}
    low, high = recall_interval(cell)
    record: dict[str, Any] = {"recall_low": low, "recall_high": high}
    if beside is not None:
        record |= {f"paired_recall_{name}": x for name, x in asdict(beside).items()}
    return record


def _matched(cell: Cell) -> dict[str, int]:
    targets = cell.values["recall_targets"].items()
    return {name: lines for name, lines in targets if lines is not None}


def _paired(matched: dict[str, int], reference: dict[str, int]) -> PairedRecall | None:
    both = [name for name in reference if name in matched]
    if not both:
        return None
    here, there = (np.array([lines[name] for name in both]) for lines in (matched, reference))
    lost = int(((there >= PASS) & (here < PASS)).sum())
    won = int(((here >= PASS) & (there < PASS)).sum())
    difference, stats = here - there, extra("scipy.stats")
    n = len(difference)
    return PairedRecall(
        n,
        lost,
        won,
        float(stats.binomtest(lost, lost + won).pvalue) if lost + won else None,
        float(difference.mean()),
        float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        float(stats.wilcoxon(difference).pvalue) if difference.any() else None,
    )
