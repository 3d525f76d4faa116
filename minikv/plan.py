"""`minikv plan`: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minikv.options import (
    BudgetCtkOption,
    BudgetCtvOption,
    BudgetOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    SinkOption,
    kv_policy,
    of_side,
)
from minikv.sources import DEFAULT

_EXAMPLES = """\b
Examples:
  minikv plan -m qwen2.5-coder-1.5b
  minikv plan -m qwen2.5-coder-1.5b --memory 2G --ctk q8_0,int3nsep --ctv int3nsep
  minikv plan -c 8192 --db grid.sqlite --bound 0.02
  minikv plan -c 4096,8192 --kv-budget 40M -ctk bf16,q8_0 -ctv bf16
"""

app = typer.Typer(rich_markup_mode=None)


@app.command("plan", epilog=_EXAMPLES)
def _plan(
    context: typer.Context,
    model: ModelOption = DEFAULT,
    contexts: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--ctx-size",
            metavar="LIST",
            help="Contexts in tokens, with commas between.  [default: the model's and parts of it]",
        ),
    ] = None,
    ctk: Annotated[
        str | None,
        typer.Option(
            "-ctk",
            "--ctk",
            metavar="LIST",
            help="Key types.  [default: all, K = V]",
            callback=of_side("k"),
        ),
    ] = None,
    ctv: Annotated[
        str | None,
        typer.Option(
            "-ctv",
            "--ctv",
            metavar="LIST",
            help="Value types, likewise.",
            callback=of_side("v"),
        ),
    ] = None,
    sink: SinkOption = 0,
    policy: PolicyOption = None,
    kv_budget: BudgetOption = None,
    budget_ctk: BudgetCtkOption = None,
    budget_ctv: BudgetCtvOption = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Tell the largest context within it: 8G, 512M, ..."),
    ] = None,
    database: Annotated[
        Path | None,
        typer.Option("--db", help="Results of minikv sweep: name the cheapest good pair in it."),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(min=0, help="How much mean KLD, in nats, is good.  [default: 0.02]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a model takes in memory, before it is loaded: exact to the byte for the cache.

    The totals are of weights, cache and scratch, which is estimated from above.  A cache holds full
    pages, and page types (nsep, pchan) their newest page in bf16 as well.

    With --kv-budget: what the cache holds at the end of each context, which share of the keys' and
    values' pages is small by then, from which context on any is, and the most tokens that fit.
    """
    from minikv.plan_run import Request, pairs, plan
    from minikv.run import budget_of

    stored = kv_policy(context, policy)
    policies = pairs(ctk, ctv, sink) if stored is None else {(stored.name, stored.name): stored}
    budget = budget_of(kv_budget, budget_ctk, budget_ctv)
    plan(model, Request.of(contexts, policies, memory, database, bound, budget), as_json)
