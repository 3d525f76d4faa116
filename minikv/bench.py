"""`minikv bench`: options and help."""

from __future__ import annotations

from typing import Annotated

import typer

from minikv.options import BackendOption, SinkOption
from minikv.sources import DEFAULT

_EXAMPLES = """\b
Examples:
  minikv bench
  minikv bench -m qwen2.5-coder-1.5b -d 0,4096 -ctk bf16,int3nsep -ctv bf16,int3nsep
  minikv bench -p 0 -n 32 -t 1,2 -r 3 -o json
  minikv bench -p 128-1024*2 -n 0 -o sql | sqlite3 bench.sqlite
"""

app = typer.Typer(rich_markup_mode=None)

_LIST = {"metavar": "LIST", "show_default": False}


@app.command("bench", epilog=_EXAMPLES)
def _bench(
    model: Annotated[
        list[str],
        typer.Option(
            "-m",
            "--model",
            help="Alias, path or hf:org/repo[:file]; one -m for each.",
            metavar="MODEL",
        ),
    ] = [DEFAULT],  # noqa: B006  typer copies it
    prompts: Annotated[
        list[str], typer.Option("-p", "--n-prompt", help="Tokens of prompts.  [512]", **_LIST)
    ] = ["512"],  # noqa: B006
    gens: Annotated[
        list[str], typer.Option("-n", "--n-gen", help="Tokens decoded singly.  [128]", **_LIST)
    ] = ["128"],  # noqa: B006
    pairs: Annotated[
        list[str],
        typer.Option("-pg", metavar="PP,TG", help="A prompt and its decoding as one test."),
    ] = [],  # noqa: B006
    depths: Annotated[
        list[str],
        typer.Option("-d", "--n-depth", help="Tokens cached before a test.  [0]", **_LIST),
    ] = ["0"],  # noqa: B006
    ctk: Annotated[
        list[str],
        typer.Option("-ctk", "--ctk", "--cache-type-k", help="Key types.  [bf16]", **_LIST),
    ] = ["bf16"],  # noqa: B006
    ctv: Annotated[
        list[str],
        typer.Option("-ctv", "--ctv", "--cache-type-v", help="Value types.  [bf16]", **_LIST),
    ] = ["bf16"],  # noqa: B006
    sink: SinkOption = 0,
    threads: Annotated[
        list[str],
        typer.Option("-t", "--threads", help="Threads.  [one per core]", **_LIST),
    ] = [],  # noqa: B006
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", help="How often each test is timed.")
    ] = 5,
    output: Annotated[
        str, typer.Option("-o", "--output", help="md, csv, json, jsonl or sql.")
    ] = "md",
    backend: BackendOption = "cpu",
) -> None:
    """Measure speed by llama-bench's tests and report it in its formats.

    Every pair of a key and a value type is measured at every depth.  A LIST is numbers or types
    with commas between; numbers can be ranges, FIRST-LAST+STEP or FIRST-LAST*FACTOR.  Each result
    is printed when it is there; Ctrl-C keeps those.
    """
    from minikv.bench_run import bench
    from minikv.lists import numbers, pair
    from tools.bench import Plan

    plan = Plan(
        numbers("-p", prompts),
        numbers("-n", gens),
        tuple(pair(text) for text in pairs),
        numbers("-d", depths),
        _names(ctk),
        _names(ctv),
        repetitions,
        sink,
    )
    bench(model, plan, numbers("-t", threads), backend, output)


def _names(lists: list[str]) -> tuple[str, ...]:
    return tuple(name for text in lists for name in text.split(","))
