"""`minikv ruler`: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minikv.kld import BaseCtkOption, BaseCtvOption
from minikv.options import (
    BackendOption,
    CtkOption,
    CtvOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    RunsByDefault,
    SinkOption,
    ThreadsOption,
    kv_policy,
)
from minikv.sources import DEFAULT

_EXAMPLES = """\b
Examples:
  minikv ruler -m qwen2.5-coder-1.5b -c 4096 -ctk q8_0 -ctv int3nsep --dump ruler.json
  minikv ruler --tasks single,multikey --samples 50 -ctk int3nsep -ctv int3nsep
  minikv ruler --kv-policy mixed.toml --dump ruler.json
  minikv ruler report ruler.json
  minikv ruler run --help
"""

app = typer.Typer(
    cls=RunsByDefault,
    rich_markup_mode=None,
    help="Measure what a packed cache loses on tasks in the manner of RULER.",
    epilog=_EXAMPLES,
)


@app.command("run", epilog=_EXAMPLES)
def _run(
    context: typer.Context,
    model: ModelOption = DEFAULT,
    ctk: CtkOption = "bf16",
    ctv: CtvOption = "bf16",
    sink: SinkOption = 0,
    policy: PolicyOption = None,
    base_ctk: BaseCtkOption = "bf16",
    base_ctv: BaseCtvOption = "bf16",
    n_ctx: Annotated[
        int, typer.Option("-c", "--ctx-size", help="Tokens of a prompt with its answer.")
    ] = 2048,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            show_default=False,
            help="Of single, multikey, multivalue, multiquery, tracking, common and frequent.  "
            "[default: all]",
        ),
    ] = "",
    samples: Annotated[int, typer.Option(min=1, max=1000, help="Trials of each task.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the texts.")] = 42,
    limit: Annotated[
        int, typer.Option("-n", "--n-predict", min=1, help="Most tokens of an answer.")
    ] = 128,
    prefill_no_think: Annotated[
        bool, typer.Option("--prefill-no-think", help="Begin answers with an empty think block.")
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option(help="Keep questions, answers and scores in this JSON file; go on from it."),
    ] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    backend: BackendOption = "cpu",
) -> None:
    """Hide needles in long texts, ask for them, and compare a cache with the 16-bit one.

    Both caches read the same texts over one copy of the weights.  A file of --dump may hold any
    number of caches, and more samples later: what is in it is not asked again.  Tasks: single, one
    needle; multikey, needles whose keys differ in one digit; multivalue, all codes of one key;
    multiquery, several keys one by one; tracking, variables given on from one to another; common
    and frequent, the words that a list has most often.
    """
    from minikv.ruler_run import Asking, run
    from minikv.run import ModelChoice

    stored = kv_policy(context, policy)
    choice = ModelChoice(model, ctk, ctv, n_ctx, threads, backend, sink, stored)
    names = [name for name in tasks.split(",") if name]
    asking = Asking(names, samples, seed, limit, prefill_no_think)
    run(choice, (base_ctk, base_ctv), asking, dump, as_json)


@app.command("report")
def _report(
    dump: Annotated[Path, typer.Argument(help="What minikv ruler --dump has written.")],
    as_json: JsonOption = False,
) -> None:
    """Show all caches of a dump beside the one they are compared with, without a model."""
    from minikv.ruler_run import report

    report(dump, as_json)
