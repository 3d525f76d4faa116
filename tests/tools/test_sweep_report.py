"""Reports say what the cells say: in the right place, with honest statistics."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import InputError
from tools.grid import FIGURES, beside_base, figures, matrix, paired, rank_correlations
from tools.plots import check_plot
from tools.results import Cell, Results
from tools.sweep_report import Report, matrix_table

BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
IDENTITY = {"base": ["f16", "f16"], "windows": 2, "n_ctx": 64, "metrics": ["kld", "ppl"]}


def cell(ctk: str, ctv: str, kld: float, nll: list[float] | None = None) -> Cell:
    values = {"bits_k": BITS[ctk], "bits_v": BITS[ctv], "mean_kld": kld, "kld_999": 2 * kld}
    return Cell((ctk, ctv), values, np.array([1.0, 2.0, 3.0, 4.0] if nll is None else nll))


GRID = [
    cell("q4_0", "f16", 0.04, [1.5, 2.0, 3.5, 4.5]),
    cell("f16", "q4_0", 0.02, [1.0, 2.5, 3.5, 4.0]),
    cell("f16", "f16", 0.0),
    cell("q8_0", "q4_0", 0.03, [1.2, 2.1, 3.0, 4.1]),
]
MEAN_KLD = FIGURES[0]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    results = Results(tmp_path / "grid.sqlite", IDENTITY, {"model": "tiny"})
    for each in GRID:
        results.put(each)
    results.put_error(("q8_0", "f16"), "out of luck")
    return results


def test_rows_are_key_types_and_both_sides_go_from_many_bits_to_few() -> None:
    m = matrix(GRID, MEAN_KLD)
    assert (m.rows, m.columns) == (["f16", "q8_0", "q4_0"], ["f16", "q4_0"])
    np.testing.assert_array_equal(m.values, [[0, 0.02], [np.nan, 0.03], [0.04, np.nan]])


def test_means_are_of_the_finished_cells() -> None:
    m = matrix(GRID, MEAN_KLD)
    np.testing.assert_allclose(m.row_means, [0.01, 0.03, 0.04])
    np.testing.assert_allclose(m.column_means, [0.02, 0.025])


def test_the_table_is_aligned_markdown_with_means_at_its_edges() -> None:
    assert matrix_table(matrix(GRID, MEAN_KLD)).splitlines() == [
        "| K \\ V |      f16 |     q4_0 |     mean |",
        "| :---- | -------: | -------: | -------: |",
        "| f16   | 0.000000 | 0.020000 | 0.010000 |",
        "| q8_0  |        - | 0.030000 | 0.030000 |",
        "| q4_0  | 0.040000 |        - | 0.040000 |",
        "| mean  | 0.020000 | 0.025000 |          |",
    ]


def test_only_what_was_measured_is_shown() -> None:
    assert [f.key for f in figures(GRID)] == ["mean_kld", "kld_999"]


def test_a_gradient_is_a_rank_correlation_and_its_absence_too() -> None:
    falling = [cell(k, v, -BITS[k]) for k in BITS for v in BITS]
    both, keys, values = rank_correlations(falling, MEAN_KLD)
    assert keys.rho == pytest.approx(-1)
    assert keys.p is not None and keys.p < 1e-6
    assert (values.bits, values.rho, values.p) == ("values", pytest.approx(0), pytest.approx(1))
    assert both.rho is not None and -1 < both.rho < -0.5
    level = rank_correlations([cell(k, "f16", 0.5) for k in BITS], MEAN_KLD)
    assert all(rank.rho is None and rank.p is None for rank in level)


def test_cells_are_paired_with_the_reference_token_by_token() -> None:
    found = {p.pair: p for p in paired(GRID, ("f16", "f16"), windows=2)}
    assert ("f16", "f16") not in found and len(found) == 3
    p = found[("q4_0", "f16")]
    difference = np.array([0.5, 0.0, 0.5, 0.5])
    assert p.difference == pytest.approx(difference.mean())
    assert p.error == pytest.approx(difference.std(ddof=1) / 2)
    assert p.delta_ppl == pytest.approx(np.exp(2.875) - np.exp(2.5))
    assert (p.unit, p.n) == ("tokens", 4)
    # Student's t = 3 with three degrees of freedom
    assert p.p == pytest.approx(0.0577, abs=1e-4)


def test_windows_are_paired_where_there_are_enough() -> None:
    base, other = np.arange(10.0), np.arange(10.0) + np.repeat([0, 1, 2, 0, 1], 2)
    cells = [cell("f16", "f16", 0, [*base]), cell("q4_0", "f16", 0, [*other])]
    (p,) = paired(cells, ("f16", "f16"), windows=5)
    assert (p.unit, p.n, p.difference) == ("windows", 5, pytest.approx(0.8))


def test_equal_cells_have_no_p_and_an_absent_reference_no_pairs() -> None:
    same = [cell("f16", "f16", 0), cell("q8_0", "f16", 0)]
    (p,) = paired(same, ("f16", "f16"), windows=2)
    assert (p.delta_ppl, p.error, p.p) == (0, 0, None)
    assert paired(GRID, ("q8_0", "q8_0"), windows=2) == []


def test_delta_ppl_needs_no_kld() -> None:
    cells = [replace(each, values=each.values | {"ppl": 10.0 + i}) for i, each in enumerate(GRID)]
    found = beside_base(cells, ("f16", "f16"))
    assert [each.values["delta_ppl"] for each in found] == [-2, -1, 0, 1]
    measured = [replace(each, values=each.values | {"delta_ppl": 7.0}) for each in cells]
    assert {each.values["delta_ppl"] for each in beside_base(measured, ("f16", "f16"))} == {7}
    assert beside_base(GRID, ("f16", "f16")) == GRID


def with_recall(each: Cell, matched: list[int]) -> Cell:
    passed = sum(lines >= 8 for lines in matched)
    figures = {
        "recall": passed / len(matched),
        "recall_lines": sum(matched) / (20 * len(matched)),
        "recall_passed": passed,
        "recall_scored": len(matched),
        "recall_errors": 0,
        "recall_hallucinated": 3,
        "recall_targets": {f"f{i}": lines for i, lines in enumerate(matched)},
    }
    return replace(each, values=each.values | figures)


def test_recall_is_told_with_its_interval_and_paired(results: Results, tmp_path: Path) -> None:
    for each, matched in zip(GRID, ([20, 4], [20, 20], [20, 20], [20, 18]), strict=True):
        results.put(with_recall(each, matched))
    report = Report(results)
    rows = [line.split("|")[1:-1] for line in report.markdown().splitlines() if "of 2 |" in line]
    want = (
        "f16/f16,2 of 2,34 to 100 %,0,100.0,3,-,-,-,-,-,-",
        "f16/q4_0,2 of 2,34 to 100 %,0,100.0,3,0,0,-,+0.00,0.00,-",
        "q8_0/q4_0,2 of 2,34 to 100 %,0,95.0,3,0,0,-,-1.00,1.00,1",
        "q4_0/f16,1 of 2,9 to 91 %,0,60.0,3,1,0,1,-8.00,8.00,1",
    )
    assert [",".join(part.strip() for part in row) for row in rows] == list(want)
    record = next(r for r in json.loads(report.json())["cells"] if r["ctk"] == "q4_0")
    assert record["recall_targets"] == {"f0": 20, "f1": 4}
    assert (record["paired_recall_lost"], record["paired_recall_lines"]) == (1, -8)
    columns = report.csv().splitlines()[0].split(",")
    assert "recall_low" in columns and "recall_targets" not in columns
    assert any(figure.key == "recall_lines" for figure, _ in report.ranks)


def test_every_form_of_the_report_is_written_and_parses(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "out"
    paths = Report(results).write(folder)
    assert sorted(paths) == sorted(folder.iterdir())
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert matrix_table(matrix(GRID, MEAN_KLD)) in markdown
    assert "- q8_0/f16: out of luck" in markdown
    assert "bits per value: f16 16.000, q8_0 8.500, q4_0 4.500" in markdown
    with (folder / "cells.csv").open(newline="") as file:
        rows = {(row["ctk"], row["ctv"]): row for row in csv.DictReader(file)}
    assert set(rows) == {each.pair for each in GRID}
    assert float(rows["q8_0", "q4_0"]["mean_kld"]) == 0.03
    document = json.loads((folder / "cells.json").read_text())
    assert document["identity"] == IDENTITY
    assert document["errors"] == {"q8_0/f16": "out of luck"}
    assert {(c["ctk"], c["ctv"]): c["mean_kld"] for c in document["cells"]} == {
        each.pair: each.values["mean_kld"] for each in GRID
    }
    assert (folder / "heatmap.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_the_page_needs_nothing_else_and_tells_each_cell(results: Results, tmp_path: Path) -> None:
    Report(results).write(tmp_path)
    page = (tmp_path / "heatmap.html").read_text(encoding="utf-8")
    assert "<script src=" not in page and "<link" not in page.split("</head>")[0]
    data = page[page.rindex("Plotly.newPlot(") :].replace("\\u002f", "/")
    for text in ("q8_0/q4_0", "mean_kld: 0.03", "kld_999: 0.06", "q4_0/q4_0: not measured"):
        assert text in data, text


def test_no_finished_cell_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cell is finished yet"):
        Report(Results(tmp_path / "grid.sqlite", IDENTITY))


@pytest.mark.parametrize("library", ["scipy", "matplotlib", "plotly"])
def test_a_missing_library_is_named_with_the_way_out(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name.split(".")[0] == library:
                raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    way_out = rf"{library} is not installed: in minikv's folder, pip install -e '.\[tools\]'"
    with pytest.raises(InputError, match=way_out):
        Report(results).write(tmp_path / "out")


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    for path, message in ((tmp_path / "a.pdf", "PNG"), (tmp_path / "no" / "a.png", "no directory")):
        with pytest.raises(InputError, match=message):
            check_plot(path)


def test_a_folder_that_cannot_be_written_is_refused(results: Results, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written"):
        Report(results).write(tmp_path / "file")
