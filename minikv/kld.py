"""`minikv kld`: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minikv.options import (
    BackendOption,
    BosOption,
    ChunksOption,
    CtkOption,
    CtvOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    SinkOption,
    TextOption,
    ThreadsOption,
    WindowOption,
    kv_policy,
    of_side,
)
from minikv.sources import DEFAULT

BaseCtkOption = Annotated[
    str,
    typer.Option(
        "--base-ctk", metavar="TYPE", help="The reference's type of keys.", callback=of_side("k")
    ),
]
BaseCtvOption = Annotated[
    str,
    typer.Option(
        "--base-ctv", metavar="TYPE", help="The reference's type of values.", callback=of_side("v")
    ),
]

_EXAMPLES = """\b
Examples:
  minikv kld -f wiki.test.raw --chunks 10 -ctk q8_0 -ctv q8_0
  minikv kld -f wiki.test.raw -c 4096 --chunks 2 -ctk q8_0 -ctv q4_0 --plot depth.png
  minikv kld -f wiki.test.raw --chunks 4 --base-ctk f32 --base-ctv f32 --json
"""

app = typer.Typer(rich_markup_mode=None)


@app.command("kld", epilog=_EXAMPLES)
def _kld(
    context: typer.Context,
    file: TextOption,
    model: ModelOption = DEFAULT,
    protocol: Annotated[
        str, typer.Option(help="llama, pa or decode, as for minikv ppl.")
    ] = "llama",
    ctk: CtkOption = "bf16",
    ctv: CtvOption = "bf16",
    sink: SinkOption = 0,
    policy: PolicyOption = None,
    base_ctk: BaseCtkOption = "f16",
    base_ctv: BaseCtvOption = "f16",
    n_ctx: WindowOption = 512,
    chunks: ChunksOption = None,
    bos_per_window: BosOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw KLD by position into this PNG file.")
    ] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    backend: BackendOption = "cpu",
) -> None:
    """Measure the KL divergence of a packed cache from a reference cache.

    Both caches read the same windows side by side.  The report is that of llama-perplexity
    --kl-divergence, with the divergence by position behind it.
    """
    from minikv.kld_run import kld
    from minikv.run import ModelChoice
    from tools.windows import Settings

    stored = kv_policy(context, policy)
    choice = ModelChoice(model, ctk, ctv, n_ctx, threads, backend, sink, stored)
    settings = Settings(protocol, n_ctx, chunks, ctk, ctv, bos_per_window, sink, stored)
    kld(choice, file, settings, (base_ctk, base_ctv), plot, as_json)
