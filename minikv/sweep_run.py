"""A grid of KV cache types, measured cell by cell as the user watches, and its report."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import progress as bars
from rich.console import Console

from engine import InputError
from engine.kv.formats import kv_format
from minikv.ppl import read_text
from minikv.run import ModelChoice, note
from minikv.text import one_line
from tools.grid import figures, matrix
from tools.ppl import files_sha256
from tools.results import Cell, Pair, Results
from tools.sweep import Grid, Sweep
from tools.sweep_report import Report, matrix_table
from tools.windows import Settings


def sweep(
    choice: ModelChoice, file: Path, settings: Settings, grid: Grid, database: Path, seed: int
) -> None:
    """Measure the cells that `database` lacks and print the grid; progress goes to stderr.

    Raises InputError at the end if cells have failed.
    """
    for name in {*grid.ctk, *grid.ctv}:
        kv_format(name)  # refuses unknown names before a download
    text = read_text(file)
    model = choice.load()
    measured = Sweep(model, text, settings, grid)
    identity = {
        "model_sha256": files_sha256(model.checkpoint.paths),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        **measured.identity(),
    }
    notes = {"model": choice.model, "file": str(file), "command": _command()}
    results = Results(database, identity, notes)
    pending = measured.pending(results, seed)
    kept = len(grid.pairs(seed)) - len(pending)
    if kept:
        note(f"{kept} cells are finished already in {database}")
    failures = _watched(measured, results, pending)
    cells = results.cells()
    for figure in figures(cells):
        print(f"{figure.title}\n{matrix_table(matrix(cells, figure))}\n")
    results.close()
    if failures:
        (k, v), line = next(iter(failures.items()))
        raise InputError(
            f"{len(failures)} of {len(pending)} cells failed, the first {k}/{v}: {line}; "
            "the same command tries them again"
        )


def report(database: Path, folder: Path) -> None:
    """Print the Markdown report of `database` and write all forms of it into `folder`."""
    results = Results.read(database)
    found = Report(results)
    paths = found.write(folder)
    print(found.markdown())
    note("wrote " + ", ".join(str(path) for path in paths))
    results.close()


def _watched(measured: Sweep, results: Results, pending: Sequence[Pair]) -> dict[Pair, str]:
    """Run the cells; a line for each, and on a terminal a bar with the time left."""
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("cells"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        # cells differ in cost: the mean of all so far tells the end best
        bars.TimeRemainingColumn(),
    )
    failures: dict[Pair, str] = {}
    with bars.Progress(
        *columns, console=console, disable=not console.is_terminal, speed_estimate_period=1e9
    ) as bar:
        task = bar.add_task("cells", total=len(pending))
        try:
            for pair, outcome in measured.run(results, pending):
                if isinstance(outcome, str):
                    failures[pair] = outcome
                console.print(_line(pair, outcome), markup=False, highlight=False, soft_wrap=True)
                bar.advance(task)
        except KeyboardInterrupt:
            bar.stop()
            note(f"stopped: finished cells are kept in {results.path}; run it again to go on")
            raise
    return failures


def _line(pair: Pair, outcome: Cell | str) -> str:
    name = "/".join(pair)
    if isinstance(outcome, str):
        return f"{name}: failed: {one_line(outcome)}"
    shown = (f"{f.title} {f.show(outcome.values[f.key])}" for f in figures([outcome]))
    return f"{name}: {', '.join(shown)}; {outcome.values['seconds']:.1f} s"


def _command() -> str:
    """The command line that reproduces this run."""
    return shlex.join(["minikv", *sys.argv[1:]])
