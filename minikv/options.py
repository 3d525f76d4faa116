"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from engine.errors import InputError

if TYPE_CHECKING:  # the help loads no engine
    from engine.kv.format import Side
    from engine.kv.policy import Policy


class RunsByDefault(TyperGroup):
    """A group of commands in which `minikv GROUP ...` means `minikv GROUP run ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] != ["--help"] and args[:1] not in [[name] for name in self.commands]:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def of_side(side: Side) -> Callable[[str | None], str | None]:
    """What a list of key or value types means: best3 and best2 become the types they stand for, so
    that reports name those."""

    def resolved(types: str | None) -> str | None:
        from engine.kv.formats import side_type

        return types and ",".join(side_type(name, side) for name in types.split(","))

    return resolved


def kv_policy(context: typer.Context, path: Path | None) -> Policy | None:
    """The policy in the file of --kv-policy, None without one.

    Raises InputError for a file that is no policy, and beside an option that it replaces.
    """
    if path is None:
        return None
    for name, option in (("ctk", "--ctk"), ("ctv", "--ctv"), ("sink", "--kv-sink")):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--kv-policy {path}: it says what {option} says; give one of them")
    from engine.kv.policy_file import read_policy

    return read_policy(path)


ModelOption = Annotated[
    str, typer.Option("-m", "--model", help="Alias, path or hf:org/repo[:file]; see minikv pull.")
]
CtkOption = Annotated[
    str,
    typer.Option(
        "-ctk",
        "--ctk",
        "--cache-type-k",
        metavar="TYPE",
        help="How keys are stored, such as q8_0 or int3nsep; see minikv info.  best3 and best2: "
        "what lost least within 3.5 and 2.8 bits, for keys and values alike; add --kv-sink 4.",
        callback=of_side("k"),
    ),
]
CtvOption = Annotated[
    str,
    typer.Option(
        "-ctv",
        "--ctv",
        "--cache-type-v",
        metavar="TYPE",
        help="How values are stored, likewise.",
        callback=of_side("v"),
    ),
]
SinkOption = Annotated[
    int,
    typer.Option(
        "--kv-sink", metavar="N", help="Keep the first N tokens of a sequence exact, such as 4."
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--kv-policy",
        metavar="FILE",
        help="Instead: types by layer, sinks and an exact window of the newest tokens, in TOML.",
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--kv-budget",
        metavar="SIZE",
        help="Most memory for the KV cache, such as 200M or 1G: once it is full, the oldest pages "
        "are packed into smaller types, values before keys.",
    ),
]
BudgetCtkOption = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="What keys are then packed into; the type they have lets them stay.  "
        "[default: int3wf, or int2wf if they are small already, int2wfq for wfq keys]",
    ),
]
BudgetCtvOption = Annotated[
    str | None, typer.Option(metavar="TYPE", help="What values are then packed into, likewise.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("-t", "--threads", help="Threads.  [default: one per core]")
]
PinOption = Annotated[
    bool, typer.Option("--pin", help="Keep every thread on a core of its own.", show_default=False)
]
BackendOption = Annotated[str, typer.Option(help="cpu, or reference: slow, plain NumPy.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, at the end.")]

# of the commands that measure a text
TextOption = Annotated[Path, typer.Option("-f", "--file", help="The text, in UTF-8.")]
WindowOption = Annotated[int, typer.Option("-c", "--ctx-size", help="Tokens of a window.")]
ChunksOption = Annotated[
    int | None, typer.Option(help="Most windows.  [default: all the text has]")
]
BosOption = Annotated[
    bool | None,
    typer.Option(help="Begin every window with BOS.  [default: if the model wants one]"),
]
