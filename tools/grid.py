"""The cells of a sweep as matrices, and what can be said of them: means, ranks, pairs.

Policies have no place in a matrix: they are rows of a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tools.extras import extra
from tools.recall_pairs import PairedRecall, recall_record
from tools.results import Cell, Pair, is_policy

FEW_WINDOWS = 5  # fewer say nothing of their own spread: tokens are compared instead


@dataclass(frozen=True)
class Figure:
    """One figure of every cell.  `decades` is True if it spans several, and its colours should."""

    key: str
    title: str
    show: Callable[[float], str]
    decades: bool = False


FIGURES = (
    Figure("mean_kld", "mean KLD (nats)", lambda x: f"{x:.6f}", decades=True),
    Figure("kld_999", "99.9 % KLD (nats)", lambda x: f"{x:.5f}", decades=True),
    Figure("same_top", "same top p (%)", lambda x: f"{100 * x:.2f}"),
    Figure("ppl", "perplexity", lambda x: f"{x:.4f}"),
    Figure("delta_ppl", "ΔPPL", lambda x: f"{x:+.4f}"),
    Figure("recall", "recall (% of targets)", lambda x: f"{100 * x:.0f}"),
    Figure("recall_lines", "recall (% of lines)", lambda x: f"{100 * x:.1f}"),
    Figure("kv_bytes", "KV cache (MiB)", lambda x: f"{x / 2**20:.2f}"),
    Figure("prefill_tps", "prompt (tokens/s)", lambda x: f"{x:.1f}"),
    Figure("decode_tps", "decoding (tokens/s)", lambda x: f"{x:.2f}"),
)


@dataclass(frozen=True)
class Matrix:
    """`values` float64 [rows, columns], NaN where no cell is finished; rows are key types and
    columns value types, each from many bits to few."""

    figure: Figure
    rows: list[str]
    columns: list[str]
    values: np.ndarray

    @property
    def row_means(self) -> np.ndarray:
        return _means(self.values)

    @property
    def column_means(self) -> np.ndarray:
        return _means(self.values.T)


def figures(cells: list[Cell]) -> list[Figure]:
    """Those that were measured, the one to judge a grid by first."""
    return [f for f in FIGURES if any(cell.values.get(f.key) is not None for cell in cells)]


def beside_base(cells: list[Cell], base: Pair) -> list[Cell]:
    """The cells with ΔPPL, also where only perplexity was measured."""
    reference = next((cell.values.get("ppl") for cell in cells if cell.pair == base), None)
    if reference is None:
        return cells
    return [
        replace(cell, values={"delta_ppl": cell.values["ppl"] - reference} | cell.values)
        for cell in cells
    ]


def split(cells: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Those of pairs and those of policies."""
    pairs = [cell for cell in cells if not is_policy(cell.pair)]
    return pairs, [cell for cell in cells if is_policy(cell.pair)]


def matrix(cells: list[Cell], figure: Figure) -> Matrix:
    """One figure of the cells of pairs."""
    rows = _by_precision({cell.pair[0]: cell.values["bits_k"] for cell in cells})
    columns = _by_precision({cell.pair[1]: cell.values["bits_v"] for cell in cells})
    values = np.full((len(rows), len(columns)), np.nan)
    for cell in cells:
        value = cell.values.get(figure.key)
        if value is not None:
            values[rows.index(cell.pair[0]), columns.index(cell.pair[1])] = value
    return Matrix(figure, rows, columns, values)


def policy_rows(cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table of policies, from many bits to few: all that was measured."""
    shown = figures(cells)
    head = ["policy", "bits K", "bits V", "sink", "recent", *(f.title for f in shown)]
    rows = []
    for cell in sorted(cells, key=lambda c: (-c.values["bits_k"] - c.values["bits_v"], c.pair)):
        have = cell.values
        row = [cell.pair[0], f"{have['bits_k']:.3f}", f"{have['bits_v']:.3f}"]
        row += [str(have["sink"]), str(have["recent"])]
        rows.append(row + ["-" if (x := have.get(f.key)) is None else f.show(x) for f in shown])
    return head, rows


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of a figure with `bits`; rho and p are None where ranks do not vary."""

    bits: str
    cells: int
    rho: float | None
    p: float | None


def rank_correlations(cells: list[Cell], figure: Figure) -> list[RankCorrelation]:
    """With the bits per value of keys and values together, of keys, and of values."""
    spearman = extra("scipy.stats").spearmanr
    cells = [cell for cell in cells if cell.values.get(figure.key) is not None]
    scores = [cell.values[figure.key] for cell in cells]
    k, v = (np.array([cell.values[f"bits_{side}"] for cell in cells]) for side in "kv")
    found = []
    for name, bits in (("keys and values", k + v), ("keys", k), ("values", v)):
        varies = len(set(bits)) > 1 and len(set(scores)) > 1 and len(cells) > 2
        rho, p = spearman(bits, scores) if varies else (None, None)
        known = None if rho is None else float(rho)
        found.append(RankCorrelation(name, len(cells), known, None if p is None else float(p)))
    return found


@dataclass(frozen=True)
class Paired:
    """A cell beside the reference cell on the same tokens.

    `difference` is the mean NLL minus the reference's, ln(PPL / PPL(base)), and `error` its
    standard error over `n` paired `unit`s; `p` is that of Student's paired test, None where nothing
    differs.
    """

    pair: Pair
    delta_ppl: float
    difference: float
    error: float
    unit: str
    n: int
    p: float | None


def paired(cells: list[Cell], base: Pair, windows: int) -> list[Paired]:
    """Every other cell that scored tokens beside `base`; empty if that one is not finished."""
    reference = next((cell for cell in cells if cell.pair == base), None)
    if reference is None or not len(reference.nll):
        return []
    return [_paired(cell, reference, windows) for cell in cells if cell.pair != base]


def _paired(cell: Cell, reference: Cell, windows: int) -> Paired:
    unit, difference = "tokens", cell.nll - reference.nll
    if windows >= FEW_WINDOWS:
        # tokens of a window are not independent; windows are, nearly
        unit, difference = "windows", difference.reshape(windows, -1).mean(axis=1)
    n = len(difference)
    error = float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    p = float(extra("scipy.stats").ttest_1samp(difference, 0.0).pvalue) if error > 0 else None
    delta = float(np.exp(cell.nll.mean()) - np.exp(reference.nll.mean()))
    return Paired(cell.pair, delta, float(difference.mean()), error, unit, n, p)


def records(
    cells: list[Cell], pairs: list[Paired], recalls: dict[Pair, PairedRecall]
) -> list[dict[str, Any]]:
    """One flat object of JSON values per cell; what matched by target is an object in it."""
    beside = {p.pair: p for p in pairs}
    found = []
    for cell in cells:
        record: dict[str, Any] = {"ctk": cell.pair[0], "ctv": cell.pair[1], **cell.values}
        if p := beside.get(cell.pair):
            record |= {
                "paired_delta_ppl": p.delta_ppl,
                "paired_ln_ratio": p.difference,
                "paired_stderr": None if np.isnan(p.error) else p.error,
                "paired_unit": p.unit,
                "paired_n": p.n,
                "paired_p": p.p,
            }
        found.append(record | recall_record(cell, recalls.get(cell.pair)))
    return found


def _by_precision(bits: dict[str, float]) -> list[str]:
    return sorted(bits, key=lambda name: (-bits[name], name))


def _means(values: np.ndarray) -> np.ndarray:
    """The mean of each row's finished cells, NaN if it has none."""
    known = ~np.isnan(values)
    sums = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(sums, known.sum(axis=1), out=np.full(len(values), np.nan), where=known.any(1))
