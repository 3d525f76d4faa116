"""`minikv sweep` and `minikv sweep report`: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minikv.kld import BaseCtkOption, BaseCtvOption
from minikv.options import (
    BackendOption,
    BosOption,
    ModelOption,
    RunsByDefault,
    TextOption,
    ThreadsOption,
    WindowOption,
)
from minikv.sources import DEFAULT

_EXAMPLES = """\b
Examples:
  minikv sweep -f wiki.test.raw --ctk f16,q8_0,q4_0 --ctv f16,q8_0,q4_0 --db grid.sqlite
  minikv sweep -f wiki.test.raw --ctk q8_0 --ctv q8_0,q4_0 --metrics kld,speed --db fast.sqlite
  minikv sweep report --db grid.sqlite --out grid/
  minikv sweep run --help
"""

app = typer.Typer(
    cls=RunsByDefault,
    rich_markup_mode=None,
    help="Measure every pair of a key type and a value type, and report the grid.",
    epilog=_EXAMPLES,
)


@app.command("run")
def _run(
    file: TextOption,
    ctk: Annotated[
        str, typer.Option("-ctk", "--ctk", metavar="LIST", help="Key types, with commas between.")
    ],
    ctv: Annotated[
        str, typer.Option("-ctv", "--ctv", metavar="LIST", help="Value types, likewise.")
    ],
    database: Annotated[
        Path, typer.Option("--db", help="The results: made, or continued if it exists.")
    ],
    model: ModelOption = DEFAULT,
    metrics: Annotated[
        str, typer.Option(metavar="LIST", help="Of ppl, kld, bytes and speed.")
    ] = "ppl,kld,bytes,speed",
    protocol: Annotated[
        str, typer.Option(help="llama, pa or decode, as for minikv ppl.")
    ] = "llama",
    base_ctk: BaseCtkOption = "f16",
    base_ctv: BaseCtvOption = "f16",
    n_ctx: WindowOption = 512,
    chunks: Annotated[int, typer.Option(help="Most windows.")] = 2,
    bos_per_window: BosOption = None,
    seed: Annotated[int, typer.Option(help="Decides the order of the cells.")] = 42,
    threads: ThreadsOption = None,
    backend: BackendOption = "cpu",
) -> None:
    """Measure every pair of a key type and a value type on the same tokens.

    Each cell is kept in the file the moment it is finished.  Stop it as you like: the same command
    goes on where it stopped, and tries cells again that failed.
    """
    from minikv.run import ModelChoice
    from minikv.sweep_run import sweep
    from tools.sweep import Grid
    from tools.windows import Settings

    lists = (tuple(x for x in text.split(",") if x) for text in (ctk, ctv, metrics))
    keys, values, measures = lists
    grid = Grid(keys, values, (base_ctk, base_ctv), measures)
    choice = ModelChoice(model, base_ctk, base_ctv, n_ctx, threads, backend)
    settings = Settings(protocol, n_ctx, chunks, base_ctk, base_ctv, bos_per_window)
    sweep(choice, file, settings, grid, database, seed)


@app.command("report")
def _report(
    database: Annotated[Path, typer.Option("--db", help="The results of minikv sweep.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Where report.md, cells.csv, ... are written.")
    ],
) -> None:
    """Report a grid: matrices, rank correlations, pairs; as Markdown, CSV, JSON, PNG and HTML."""
    from minikv.sweep_run import report

    report(database, folder)
