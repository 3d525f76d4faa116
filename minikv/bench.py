"""`minikv bench`: options and help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from minikv.options import BackendOption, PinOption, SinkOption
from minikv.sources import DEFAULT

if TYPE_CHECKING:
    from engine.kv.format import Side

_EXAMPLES = """\b
Examples:
  minikv bench
  minikv bench -m qwen2.5-coder-1.5b -d 0,4096 -ctk bf16,int3nsep -ctv bf16,int3nsep
  minikv bench -p 0 -n 32 -t 1,2 -r 3 -o json
  minikv bench -p 128-1024*2 -n 0 -o sql | sqlite3 bench.sqlite
"""

app = typer.Typer(rich_markup_mode=None)


def _several(*names: str, about: str, default: str | None = None, metavar: str = "LIST") -> Any:
    """An option that may be given several times; `default` stands for none given."""
    given = [] if default is None else [default]
    return typer.Option(
        *names,
        help=about,
        metavar=metavar,
        show_default=False,
        default_factory=lambda: list(given),
    )


_MODEL = "Alias, path or hf:org/repo[:file]; one -m for each."
_PAIR = "A prompt and its decoding as one test."


@app.command("bench", epilog=_EXAMPLES)
def _bench(
    model: Annotated[
        list[str], _several("-m", "--model", about=_MODEL, default=DEFAULT, metavar="MODEL")
    ],
    prompts: Annotated[
        list[str], _several("-p", "--n-prompt", about="Tokens of prompts.  [512]", default="512")
    ],
    gens: Annotated[
        list[str], _several("-n", "--n-gen", about="Tokens decoded singly.  [128]", default="128")
    ],
    pairs: Annotated[list[str], _several("-pg", about=_PAIR, metavar="PP,TG")],
    depths: Annotated[
        list[str],
        _several("-d", "--n-depth", about="Tokens cached before a test.  [0]", default="0"),
    ],
    ctk: Annotated[
        list[str],
        _several("-ctk", "--ctk", "--cache-type-k", about="Key types.  [bf16]", default="bf16"),
    ],
    ctv: Annotated[
        list[str],
        _several("-ctv", "--ctv", "--cache-type-v", about="Value types.  [bf16]", default="bf16"),
    ],
    threads: Annotated[list[str], _several("-t", "--threads", about="Threads.  [one per core]")],
    pin: PinOption = False,
    sink: SinkOption = 0,
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
        _names(ctk, "k"),
        _names(ctv, "v"),
        repetitions,
        sink,
    )
    bench(model, plan, numbers("-t", threads), pin, backend, output)


def _names(lists: list[str], side: Side) -> tuple[str, ...]:
    from engine.kv.formats import side_type

    return tuple(side_type(name, side) for text in lists for name in text.split(","))
