"""`minikv recall`: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
from minikv.text import SECRET

_EXAMPLES = """\b
Examples:
  minikv recall stdlib:http/server.py -m qwen2.5-coder-1.5b
  minikv recall src/ -k 8 -ctk q8_0 -ctv int3nsep --dump q8.json
  minikv recall random-bodies --functions 40 --confusable 2 --dump r.json
  minikv recall stdlib:json --base-url http://localhost:8080 -m any
  minikv recall rescore q8.json --relax-indent
  minikv recall run --help
"""

app = typer.Typer(
    cls=RunsByDefault,
    rich_markup_mode=None,
    help="Measure how well functions of a long source are repeated verbatim.",
    epilog=_EXAMPLES,
)

RelaxOption = Annotated[
    bool, typer.Option("--relax-indent", help="Do not compare indentation when scoring.")
]


_ENGINE_ONLY = ("ctk", "ctv", "sink", "policy", "n_ctx", "threads", "backend")


@app.command("run", epilog=_EXAMPLES)
def _run(
    context: typer.Context,
    corpus: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS...",
            show_default=False,
            help="Python, JavaScript or PHP files or folders, stdlib:PATH for the standard "
            "library's, or random-bodies.",
        ),
    ],
    model: ModelOption = DEFAULT,
    ctk: CtkOption = "bf16",
    ctv: CtvOption = "bf16",
    sink: SinkOption = 0,
    policy: PolicyOption = None,
    n_ctx: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Context in tokens.  [default: the model's]"),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Most functions to ask for.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice, and of random-bodies.")] = 42,
    limit: Annotated[
        int, typer.Option("-n", "--n-predict", min=1, help="Most tokens of an answer.")
    ] = 1024,
    functions: Annotated[
        int | None, typer.Option(help="random-bodies: how many functions.  [default: 200]")
    ] = None,
    value_len: Annotated[
        int | None, typer.Option(help="random-bodies: characters of a literal.  [default: 24]")
    ] = None,
    confusable: Annotated[
        int | None,
        typer.Option(help="random-bodies: names differ only in their last E of 8 characters."),
    ] = None,
    relax_indent: RelaxOption = False,
    prefill_no_think: Annotated[
        bool, typer.Option("--prefill-no-think", help="Begin answers with an empty think block.")
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option(help="Keep prompts, answers and scores in this JSON file; go on from it."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="Ask an OpenAI-compatible server, which knows MODEL, instead."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            SECRET, metavar="KEY", help="The server's key, a bearer token; kept in no dump."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds a reply of the server may take.")
    ] = 1800,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    backend: BackendOption = "cpu",
) -> None:
    """Ask for functions and compare the answers line by line.

    The model reads the whole source, then is asked for the first 20 lines of one function's body
    after another.  8 right lines pass.  Marks: '-' a missing line, '+' one that the function does
    not have, '*' a right one beyond the 20.
    """
    from minikv.recall_run import Asking, run
    from minikv.run import ModelChoice

    given = {"functions": functions, "value_len": value_len, "confusable": confusable}
    knobs = {name: value for name, value in given.items() if value is not None}
    asking = Asking(corpus, knobs, k, seed, limit, prefill_no_think, relax_indent)
    stored = kv_policy(context, policy)
    choice = ModelChoice(model, ctk, ctv, n_ctx, threads, backend, sink, stored)
    if base_url is None:
        if api_key is not None:
            raise typer.BadParameter(f"{SECRET}: there is no server; give --base-url too")
        run(asking, lambda: asking.engine(choice), dump, as_json)
    else:
        _refuse_engine_options(context)
        server = asking.server(base_url, model, timeout, api_key)
        run(asking, lambda: server, dump, as_json)


def _refuse_engine_options(context: typer.Context) -> None:
    """With a server, options of our own engine would be ignored: say so instead."""
    for name in _ENGINE_ONLY:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = {"n_ctx": "-c", "sink": "--kv-sink", "policy": "--kv-policy"}.get(
                name, f"--{name}"
            )
            raise typer.BadParameter(f"{option}: the server of --base-url decides that itself")


@app.command("rescore")
def _rescore(
    dump: Annotated[Path, typer.Argument(help="What minikv recall --dump has written.")],
    relax_indent: RelaxOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score the answers of a dump anew, without a model."""
    from minikv.recall_run import rescore

    rescore(dump, relax_indent, as_json)
