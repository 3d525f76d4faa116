"""A results file keeps what is finished, of one model and one way of measuring."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from engine import InputError
from tools.results import Cell, Results

IDENTITY = {"model_sha256": "ab" * 32, "n_ctx": 512, "metrics": ["kld", "ppl"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "grid.sqlite"


def cell(ctk: str = "q8_0", ctv: str = "q4_0") -> Cell:
    return Cell((ctk, ctv), {"ppl": 1 / 3, "error": None}, np.array([0.1, 0.2, np.pi]))


def test_a_cell_comes_back_as_it_was_put(path: Path) -> None:
    Results(path, IDENTITY, {"model": "m"}).put(cell())
    results = Results.read(path)
    (found,) = results.cells()
    assert (found.pair, found.values) == (cell().pair, cell().values)
    assert (found.nll == cell().nll).all()
    assert (results.identity, results.notes) == (IDENTITY, {"model": "m"})


def test_a_cell_is_on_disk_before_the_file_is_closed(path: Path) -> None:
    writer = Results(path, IDENTITY)
    writer.put(cell())
    assert Results.read(path).done() == {cell().pair}


def test_a_cell_with_an_error_is_not_done_until_it_succeeds(path: Path) -> None:
    results = Results(path, IDENTITY)
    results.put_error(cell().pair, "out of luck")
    assert (results.done(), results.cells()) == (set(), [])
    assert results.errors() == {cell().pair: "out of luck"}
    results.put(cell())
    assert (results.done(), results.errors()) == ({cell().pair}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_sha256": "cd" * 32},
            r"of model m \(sha256 abababababab\.\.\.\), not n \(sha256 cd",
        ),
        ({"n_ctx": 1024}, "holds results of n_ctx 512, not 1024; give another --db"),
        ({"metrics": ["ppl"]}, "holds results of metrics kld,ppl, not ppl;"),
    ],
)
def test_results_of_another_identity_are_refused_by_name(
    path: Path, change: dict, message: str
) -> None:
    Results(path, IDENTITY, {"model": "m"}).put(cell())
    with pytest.raises(InputError, match=message):
        Results(path, IDENTITY | change, {"model": "n"})
    assert Results(path, IDENTITY).done() == {cell().pair}


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE photos (name TEXT)")
    before = path.read_bytes()
    for opening in (lambda: Results(path, IDENTITY), lambda: Results.read(path)):
        with pytest.raises(InputError, match="not a results file of minikv sweep"):
            opening()
    assert path.read_bytes() == before


def test_files_that_cannot_be_opened_are_refused_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to be looked at " * 100)
    for path in (text, tmp_path, tmp_path / "absent" / "grid.sqlite"):
        with pytest.raises(InputError) as caught:
            Results(path, IDENTITY)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such results file"):
        Results.read(tmp_path / "absent.sqlite")
    assert not (tmp_path / "absent.sqlite").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(path: Path) -> None:
    results = Results(path, IDENTITY)
    results.put(cell())
    (pages,) = results._db.execute("PRAGMA page_count").fetchone()
    results._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(InputError, match=r"grid\.sqlite: database or disk is full"):
        results.put(Cell(("f16", "f16"), {}, np.zeros(100_000)))
    assert Results.read(path).done() == {cell().pair}
