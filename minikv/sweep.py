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
    SinkOption,
    TextOption,
    ThreadsOption,
    WindowOption,
    of_side,
)
from minikv.sources import DEFAULT

_EXAMPLES = """\b
Examples:
  minikv sweep -f wiki.test.raw --ctk f16,q8_0,q4_0 --ctv f16,q8_0,q4_0 --db grid.sqlite
  minikv sweep -f wiki.test.raw --ctk q8_0 --ctv q8_0,q4_0 --metrics kld,speed --db fast.sqlite
  minikv sweep -f wiki.test.raw --ctk f16,q4_0 --ctv f16 --metrics recall --db recall.sqlite
  minikv sweep -f wiki.test.raw --kv-policy a.toml --kv-policy b.toml --db policies.sqlite
  minikv sweep ... --executor dask://192.168.1.10:8786
  minikv sweep report --db grid.sqlite --out grid/
  minikv sweep run --help
"""

app = typer.Typer(
    cls=RunsByDefault,
    rich_markup_mode=None,
    help="Measure every pair of a key type and a value type, and policies, and report the grid.",
    epilog=_EXAMPLES,
)


@app.command("run")
def _run(
    file: TextOption,
    database: Annotated[
        Path, typer.Option("--db", help="The results: made, or continued if it exists.")
    ],
    ctk: Annotated[
        str,
        typer.Option(
            "-ctk",
            "--ctk",
            metavar="LIST",
            show_default=False,
            help="Key types, with commas between.",
            callback=of_side("k"),
        ),
    ] = "",
    ctv: Annotated[
        str,
        typer.Option(
            "-ctv",
            "--ctv",
            metavar="LIST",
            show_default=False,
            help="Value types, likewise.",
            callback=of_side("v"),
        ),
    ] = "",
    policies: Annotated[
        list[Path] | None,
        typer.Option(
            "--kv-policy",
            metavar="FILE",
            help="A cell beside the pairs, or without any: types by layer, sinks of its own and an "
            "exact window, in TOML.  Give it once for each file.",
        ),
    ] = None,
    model: ModelOption = DEFAULT,
    metrics: Annotated[
        str, typer.Option(metavar="LIST", help="Of ppl, kld, recall, bytes, speed.")
    ] = "ppl,kld,bytes,speed",
    protocol: Annotated[
        str, typer.Option(help="llama, pa or decode, as for minikv ppl.")
    ] = "llama",
    base_ctk: BaseCtkOption = "f16",
    base_ctv: BaseCtvOption = "f16",
    sink: SinkOption = 0,
    n_ctx: WindowOption = 512,
    chunks: Annotated[int, typer.Option(help="Most windows.")] = 2,
    bos_per_window: BosOption = None,
    functions: Annotated[
        int, typer.Option(help="recall: functions of a corpus of random bodies.")
    ] = 8,
    value_len: Annotated[int, typer.Option(help="recall: characters of a literal.")] = 24,
    confusable: Annotated[
        int, typer.Option(help="recall: names differ only in their last E of 8 characters.")
    ] = 8,
    k: Annotated[int, typer.Option("-k", min=1, help="recall: most functions to ask for.")] = 16,
    seed: Annotated[int, typer.Option(help="Decides the order of the cells.")] = 42,
    executor: Annotated[
        str, typer.Option(help="local, or dask://HOST:PORT, the scheduler of a Dask cluster.")
    ] = "local",
    threads: ThreadsOption = None,
    backend: BackendOption = "cpu",
) -> None:
    """Measure every pair of a key type and a value type, and policies, on the same tokens.

    Each cell is kept in the file the moment it is finished.  Stop it as you like: the same command
    goes on where it stopped, and tries cells again that failed.  A policy is known by its file's
    name and bytes: edited, it is another cell.

    recall has functions repeated verbatim, as minikv recall random-bodies does.

    With dask://HOST:PORT the cells go to the workers of a cluster, each with minikv[tools] and the
    model under the same name.  Results still come here; a cell whose worker dies goes to another.
    Every worker process loads the model and uses -t threads.
    """
    from engine.kv.policy_file import read_policy
    from minikv.ppl import read_text
    from minikv.run import ModelChoice
    from minikv.sweep_plan import Plan
    from minikv.sweep_run import sweep
    from tools.recall.random_bodies import RandomBodies
    from tools.sweep import Grid
    from tools.sweep_recall import RecallSettings
    from tools.windows import Settings

    lists = (tuple(x for x in text.split(",") if x) for text in (ctk, ctv, metrics))
    keys, values, measures = lists
    stored = tuple(map(read_policy, policies or ()))
    grid = Grid(keys, values, (base_ctk, base_ctv), measures, stored)
    choice = ModelChoice(model, base_ctk, base_ctv, n_ctx, threads, backend, sink)
    settings = Settings(protocol, n_ctx, chunks, base_ctk, base_ctv, bos_per_window, sink)
    bodies = RandomBodies(functions, value_len, confusable=confusable)
    plan = Plan(choice, read_text(file), settings, grid, RecallSettings(bodies, k))
    sweep(plan, file, database, seed, executor)


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
