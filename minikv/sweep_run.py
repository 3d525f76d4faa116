"""A grid of KV cache types, measured cell by cell as the user watches, and its report."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from rich import progress as bars
from rich.console import Console

from engine import InputError
from minikv.run import note
from minikv.sweep_plan import Plan
from minikv.text import command_line, one_line
from tools.grid import beside_base, figures, matrix, split
from tools.results import Outcome, Pair, Results, cell_name
from tools.sweep_dask import Cluster
from tools.sweep_report import Report, matrix_table, policy_table


def sweep(plan: Plan, file: Path, database: Path, seed: int, executor: str) -> None:
    """Measure the cells that `database` lacks and print the grid; progress goes to stderr.

    `executor` is "local", this process, or dask://HOST:PORT.  Raises InputError at the end if cells
    have failed.
    """
    with nullcontext() if executor == "local" else Cluster(executor) as cluster:
        measured = plan.sweep()
        identity = measured.identity()
        notes = {"model": plan.choice.model, "file": str(file), "command": command_line()}
        results = Results(database, identity, notes)
        pending = measured.pending(results, seed)
        kept = len(plan.grid.pairs(seed)) - len(pending)
        if kept:
            note(f"{kept} cells are finished already in {database}")
        if cluster is None:
            outcomes = measured.run(results, pending)
        else:
            outcomes = cluster.run(plan.anywhere(), identity, results, pending)
        failures = _watched(outcomes, len(pending), database)
    pairs, policies = split(beside_base(results.cells(), plan.grid.base))
    for figure in figures(pairs):
        print(f"{figure.title}\n{matrix_table(matrix(pairs, figure))}\n")
    if policies:
        print(f"policies\n{policy_table(policies)}\n")
    results.close()
    if failures:
        pair, line = next(iter(failures.items()))
        raise InputError(
            f"{len(failures)} of {len(pending)} cells failed, the first {cell_name(pair)}: {line}; "
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


def _watched(
    outcomes: Iterable[tuple[Pair, Outcome]], total: int, database: Path
) -> dict[Pair, str]:
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
        task = bar.add_task("cells", total=total)
        try:
            for pair, outcome in outcomes:
                if isinstance(outcome, str):
                    failures[pair] = outcome
                console.print(_line(pair, outcome), markup=False, highlight=False, soft_wrap=True)
                bar.advance(task)
        except KeyboardInterrupt:
            bar.stop()
            note(f"stopped: finished cells are kept in {database}; run it again to go on")
            raise
    return failures


def _line(pair: Pair, outcome: Outcome) -> str:
    name = cell_name(pair)
    if isinstance(outcome, str):
        return f"{name}: failed: {one_line(outcome)}"
    shown = [f"{f.title} {f.show(outcome.values[f.key])}" for f in figures([outcome])]
    silent = outcome.values.get("recall_errors")
    shown += [f"{silent} targets unanswered"] if silent else []
    return f"{name}: {', '.join(shown)}; {outcome.values['seconds']:.1f} s"
