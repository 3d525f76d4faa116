"""A policy is a cell of a grid: measured as elsewhere, known by its file, told beside the pairs."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from letters import ORACLE, TEXT, letters_model

from engine import InputError, Session
from engine.kv.policy import Policy
from engine.kv.policy_file import read_policy
from engine.model.load import Model, open_checkpoint
from tools.kld import Divergence
from tools.kld_report import Statistics
from tools.plan import Plan, cheapest
from tools.results import Cell, Results
from tools.sweep import Grid, Sweep
from tools.sweep_report import Report
from tools.windows import Settings

SETTINGS = Settings("llama", 64, 2)
MIXED = """k = "int3nsep:32"
v = "q4_0"
sink = 2
recent = 8
[[layers]]
first = 1
k = "q8_0"
"""


@pytest.fixture(scope="module")
def model() -> Model:
    return letters_model()


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "mixed.toml").write_text(MIXED)
    return read_policy(tmp_path / "mixed.toml")


def alone(policy: Policy, *metrics: str) -> Grid:
    return Grid((), (), metrics=metrics, policies=(policy,))


def pair(policy: Policy) -> tuple[str, str]:
    return policy.name, policy.name


def test_its_cell_is_what_minikv_kld_measures_bit_for_bit(model: Model, policy: Policy) -> None:
    cell = Sweep(model, TEXT, SETTINGS, alone(policy, "kld")).measure(pair(policy))
    divergence = Divergence(model, TEXT, Settings("llama", 64, 2, policy=policy))
    *_, tokens = divergence
    assert (cell.nll == tokens.nll).all()
    expected = Statistics(tokens).values()
    assert {name: cell.values[name] for name in expected} == expected
    assert (cell.values["sink"], cell.values["recent"]) == (2, 8)
    assert cell.stored(0).of_layers(2) == policy.of_layers(2)


def test_bytes_are_those_of_a_session_sinks_included(model: Model, policy: Policy) -> None:
    grid = Grid(("q8_0",), ("int3nsep:32",), metrics=("bytes",), policies=(policy,))
    sweep = Sweep(model, TEXT, Settings("llama", 64, 2, sink=4), grid)
    for cell, stored in (
        (pair(policy), policy),
        (("q8_0", "int3nsep:32"), Policy.of("q8_0", "int3nsep:32", 4)),
    ):
        session = Session(model, n_ctx=64, policy=stored)
        session.extend(range(64))
        assert sweep.measure(cell).values["kv_bytes"] == session.cache.nbytes


def test_an_edited_file_is_another_cell(model: Model, policy: Policy, tmp_path: Path) -> None:
    results = Results(tmp_path / "grid.sqlite", {})
    first = Sweep(model, TEXT, SETTINGS, alone(policy, "ppl"))
    dict(first.run(results, first.pending(results, seed=1)))
    assert first.pending(results, seed=1) == []
    (tmp_path / "mixed.toml").write_text(MIXED + "# the same types\n")
    edited = read_policy(tmp_path / "mixed.toml")
    again = Sweep(model, TEXT, SETTINGS, alone(edited, "ppl"))
    assert again.pending(results, seed=1) == [pair(edited)]
    dict(again.run(results, again.pending(results, seed=1)))
    assert results.done() == {("f16", "f16"), pair(policy), pair(edited)}


def test_a_grid_with_policies_travels_to_other_machines(policy: Policy) -> None:
    grid = Grid(("q8_0",), ("q8_0",), policies=(policy,))
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert set(grid.pairs(0)) == {("f16", "f16"), ("q8_0", "q8_0"), pair(policy)}


def test_what_cannot_be_measured_is_refused_at_once(
    model: Model, policy: Policy, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="2 exact first tokens: protocol pa takes none"):
        Sweep(model, TEXT, Settings("pa", 64, 2), alone(policy, "ppl"))
    (tmp_path / "deep.toml").write_text("[[layers]]\nfirst = 9\nk = 'q8_0'")
    with pytest.raises(InputError, match=r"deep\.toml: .*: first = 9: the model has 2 layers"):
        Sweep(model, TEXT, SETTINGS, alone(read_policy(tmp_path / "deep.toml"), "ppl"))
    with pytest.raises(InputError, match="no value types"):
        Grid(("q8_0",), (), policies=(policy,))


def filled(path: Path, policy: Policy) -> Results:
    identity = {"base": ["f16", "f16"], "windows": 2, "n_ctx": 64, "metrics": ["kld"]}
    results = Results(path, identity, {"model": "tiny"})
    for n, (types, bits) in enumerate(((("f16", "f16"), 16.0), (("q8_0", "f16"), 8.5))):
        nll = np.array([1.0, 2.0 + n, 3.0])
        results.put(Cell(types, {"bits_k": bits, "bits_v": 16.0, "mean_kld": 0.01 * n}, nll))
    values = {"bits_k": 4.0, "bits_v": 3.0, "sink": 2, "recent": 8, "policy": policy.source}
    results.put(Cell(pair(policy), values | {"mean_kld": 0.005}, np.array([1.0, 2.5, 3.0])))
    return results


def test_tables_have_it_and_the_matrix_holds_pairs(tmp_path: Path, policy: Policy) -> None:
    report = Report(filled(tmp_path / "grid.sqlite", policy))
    (matrix,) = report.matrices
    assert (matrix.rows, matrix.columns) == (["f16", "q8_0"], ["f16"])
    text = report.markdown()
    row = [cell.strip() for cell in text.split(f"| {policy.name}")[1].split("|")[1:7]]
    assert row[:5] == ["4.000", "3.000", "2", "8", "0.005000"]
    assert '    k = "int3nsep:32"\n    v = "q4_0"\n    sink = 2' in text
    beside = text.split("## Beside the reference cell")[1]
    assert f"| {policy.name}" in beside
    ((_, (both, *_)),) = report.ranks
    assert both.cells == 2  # its windows and sinks are not in its bits


def test_every_form_has_it(tmp_path: Path, policy: Policy) -> None:
    Report(filled(tmp_path / "grid.sqlite", policy)).write(tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/cells.csv").read_text())))
    row = next(row for row in rows if row["ctk"] == policy.name)
    assert (row["ctv"], row["recent"], row["mean_kld"]) == (policy.name, "8", "0.005")
    assert "policy" not in row
    cells = json.loads((tmp_path / "out/cells.json").read_text())["cells"]
    assert next(c for c in cells if c["ctk"] == policy.name)["policy"] == MIXED
    page = (tmp_path / "out/heatmap.html").read_text(encoding="utf-8")
    assert policy.name in page[page.rindex("Plotly.newPlot(") :]
    assert (tmp_path / "out/heatmap.png").exists()


def test_a_report_of_policies_alone_has_no_heat_map(tmp_path: Path, policy: Policy) -> None:
    whole = filled(tmp_path / "whole.sqlite", policy)
    results = Results(tmp_path / "part.sqlite", whole.identity)
    results.put(next(cell for cell in whole.cells() if cell.pair == pair(policy)))
    paths = Report(results).write(tmp_path / "out")
    assert [path.name for path in paths] == ["report.md", "cells.csv", "cells.json"]
    assert policy.name in (tmp_path / "out/report.md").read_text(encoding="utf-8")


def test_a_files_name_is_one_printable_line_and_breaks_no_table(tmp_path: Path) -> None:
    (tmp_path / "a|b\n\x1b[1m<i>.toml").write_text(MIXED)
    policy = read_policy(tmp_path / "a|b\n\x1b[1m<i>.toml")
    assert policy.name.startswith("a|b\ufffd\ufffd[1m<i>.toml@")
    report = Report(filled(tmp_path / "grid.sqlite", policy))
    assert "| a\\|b\ufffd\ufffd[1m<i>.toml@" in report.markdown()
    report.write(tmp_path / "out")
    page = (tmp_path / "out/heatmap.html").read_text(encoding="utf-8")
    assert "<i>.toml" not in page[page.rindex("Plotly.newPlot(") :]


def test_the_cheapest_measured_cell_may_be_a_policy(tmp_path: Path, policy: Policy) -> None:
    plan = Plan(open_checkpoint(ORACLE))
    found = cheapest(filled(tmp_path / "grid.sqlite", policy), plan, 64, 0.005)
    assert found is not None and found.pair == pair(policy) and found.stored(0).sink == 2
