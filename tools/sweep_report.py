"""A sweep as Markdown, CSV, JSON, a picture and a page."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from dataclasses import asdict
from pathlib import Path

import numpy as np

from engine.errors import InputError
from tools.grid import (
    FEW_WINDOWS,
    Figure,
    Matrix,
    Paired,
    RankCorrelation,
    beside_base,
    figures,
    matrix,
    paired,
    policy_rows,
    rank_correlations,
    records,
    split,
)
from tools.heatmap import write_html, write_png
from tools.recall_pairs import PairedRecall, paired_recall, recall_interval
from tools.results import Cell, Results, cell_name

_RANKED = ("mean_kld", "ppl", "recall_lines")  # figures that bits should explain
_NOT_FLAT = ("recall_targets", "policy")  # figures that a line of CSV has no room for


class Report:
    """All there is to say of a results file.  Raises InputError if no cell is finished."""

    def __init__(self, results: Results) -> None:
        self.identity, self.notes = results.identity, results.notes
        base = tuple(self.identity["base"])
        self.cells: list[Cell] = beside_base(results.cells(), base)
        if not self.cells:
            raise InputError(f"{results.path}: no cell is finished yet")
        self.errors = results.errors()
        self.pairs, self.policies = split(self.cells)
        self.matrices: list[Matrix] = [matrix(self.pairs, f) for f in figures(self.pairs)]
        self.recalls = paired_recall(self.cells, base)
        self.paired: list[Paired] = paired(self.cells, base, self.identity["windows"])
        self.ranks: list[tuple[Figure, list[RankCorrelation]]] = [
            (m.figure, rank_correlations(self.pairs, m.figure))
            for m in self.matrices
            if m.figure.key in _RANKED
        ]

    def write(self, folder: Path) -> list[Path]:
        """Write all forms into `folder`, which is made if need be; returns their paths."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in (
                ("report.md", self.markdown()),
                ("cells.csv", self.csv()),
                ("cells.json", self.json()),
            ):
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        title = f"{self.notes.get('model', 'model')}, {self.identity['windows']} windows of "
        title += f"{self.identity['n_ctx']} tokens, against {'/'.join(self.identity['base'])}"
        names = ["report.md", "cells.csv", "cells.json"]
        if self.matrices:
            write_png(self.matrices[0], title, folder / "heatmap.png")
            write_html(self.matrices, self.cells, title, folder / "heatmap.html")
            names += ["heatmap.png", "heatmap.html"]
        return [folder / name for name in names]

    def markdown(self) -> str:
        parts = [f"# KV cache grid: {self.notes.get('model', 'model')}", self._facts()]
        parts += [f"## {m.figure.title}\n\n{matrix_table(m)}" for m in self.matrices]
        parts += [f"## Policies\n\n{self._policies()}"] if self.policies else []
        parts += [f"## Rank correlation with bits\n\n{self._rank_table()}"] if self.ranks else []
        parts += [f"## Beside the reference cell\n\n{self._paired_table()}"] if self.paired else []
        if any("recall_targets" in cell.values for cell in self.cells):
            parts.append(f"## Recall\n\n{self._recall_table()}")
        if self.errors:
            lines = (f"- {cell_name(pair)}: {error}" for pair, error in self.errors.items())
            parts.append("## Cells that failed\n\n" + "\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """One line per cell."""
        rows = records(self.cells, self.paired, self.recalls)
        for row in rows:
            for name in _NOT_FLAT:
                row.pop(name, None)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def json(self) -> str:
        document = {
            "identity": self.identity,
            "notes": self.notes,
            "cells": records(self.cells, self.paired, self.recalls),
            "errors": {cell_name(pair): error for pair, error in self.errors.items()},
            "rank_correlations": [
                {"figure": figure.key} | asdict(rank)
                for figure, ranks in self.ranks
                for rank in ranks
            ],
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    def _facts(self) -> str:
        shown = {**self.notes, **self.identity, "base": "/".join(self.identity["base"])}
        shown |= {"metrics": ", ".join(self.identity["metrics"])}
        lines = [f"- {name}: `{value}`" for name, value in shown.items()]
        bits = {c.pair[0]: c.values["bits_k"] for c in self.pairs}
        bits |= {c.pair[1]: c.values["bits_v"] for c in self.pairs}
        each = ", ".join(
            f"{name} {bits[name]:.3f}" for name in sorted(bits, key=lambda n: -bits[n])
        )
        return "\n".join([*lines, f"- bits per value: {each}"])

    def _rank_table(self) -> str:
        rows = [
            [figure.title, rank.bits, str(rank.cells), _number(rank.rho, ".3f"), _number(rank.p)]
            for figure, ranks in self.ranks
            for rank in ranks
        ]
        head = ["figure", "bits of", "cells", "Spearman's rho", "p"]
        note = "p takes the cells for independent of one another"
        note += ", and policies are left out." if self.policies else "."
        return f"{_table(head, rows)}\n\n{note}"

    def _policies(self) -> str:
        """A table of all of them, then what each file says."""
        parts = [policy_table(self.policies)]
        for cell in self.policies:
            text = textwrap.indent(cell.values["policy"].rstrip(), "    ", lambda _: True)
            parts.append(f"`{cell.pair[0]}`:\n\n{text}")
        return "\n\n".join(parts)

    def _paired_table(self) -> str:
        rows = [
            [cell_name(p.pair), f"{p.delta_ppl:+.4f}", f"{p.difference:+.6f}",
             _number(p.error, ".6f"), _number(p.p)]
            for p in sorted(self.paired, key=lambda p: p.difference)
        ]  # fmt: skip
        unit, n = self.paired[0].unit, self.paired[0].n
        why = "" if unit == "windows" else f"; windows would be fewer than {FEW_WINDOWS}"
        head = ["K/V", "ΔPPL", "ln(PPL/PPL(base))", "standard error", "p"]
        return _table(head, rows) + f"\n\nPaired over the same {n} {unit}{why}."

    def _recall_table(self) -> str:
        asked = [cell for cell in self.cells if "recall_targets" in cell.values]
        asked.sort(key=lambda cell: -(cell.values["recall_lines"] or 0))
        rows = [_recall_row(cell, self.recalls.get(cell.pair)) for cell in asked]
        head = ["K/V", "passed", "95 % interval", "unanswered", "% of lines", "hallucinated"]
        head += ["lost", "won", "p", "Δ lines", "standard error", "p of Δ"]
        return _table(head, rows) + (
            "\n\nIntervals are Wilson's.  The rest is paired with the reference cell over the "
            "targets both answered: those lost and won (p: McNemar's exact test), and the mean "
            "difference of matched lines per target (p: Wilcoxon's signed ranks)."
        )


def matrix_table(m: Matrix) -> str:
    """The matrix as aligned Markdown: keys down, values across, means at the edges."""

    def show(x: float) -> str:
        return "-" if np.isnan(x) else m.figure.show(x)

    rows = [
        [name, *map(show, values), show(mean)]
        for name, values, mean in zip(m.rows, m.values, m.row_means, strict=True)
    ]
    last = ["mean", *map(show, m.column_means), ""]
    return _table(["K \\ V", *m.columns, "mean"], [*rows, last])


def policy_table(cells: list[Cell]) -> str:
    """The figures of policies as aligned Markdown."""
    return _table(*policy_rows(cells))


def _recall_row(cell: Cell, beside: PairedRecall | None) -> list[str]:
    low, high = recall_interval(cell)
    lines = cell.values["recall_lines"]
    row = [
        cell_name(cell.pair),
        f"{cell.values['recall_passed']} of {cell.values['recall_scored']}",
        f"{100 * low:.0f} to {100 * high:.0f} %",
        str(cell.values["recall_errors"]),
        _number(None if lines is None else 100 * lines, ".1f"),
        str(cell.values["recall_hallucinated"]),
    ]
    if beside is None:
        return row + ["-"] * 6
    counts = [str(beside.lost), str(beside.won), _number(beside.p)]
    return row + counts + [
        f"{beside.lines:+.2f}", _number(beside.error, ".2f"), _number(beside.p_lines)
    ]  # fmt: skip


def _table(head: list[str], rows: list[list[str]]) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]  # of names of files
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(aligned)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def _number(x: float | None, spec: str = ".3g") -> str:
    return "-" if x is None or np.isnan(x) else f"{x:{spec}}"
