"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class RunsByDefault(TyperGroup):
    """A group of commands in which `minikv GROUP ...` means `minikv GROUP run ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] != ["--help"] and args[:1] not in [[name] for name in self.commands]:
            args = ["run", *args]
        return super().parse_args(ctx, args)


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
        help="How keys are stored, such as q8_0 or int3nsep; see minikv info.",
    ),
]
CtvOption = Annotated[
    str,
    typer.Option(
        "-ctv", "--ctv", "--cache-type-v", metavar="TYPE", help="How values are stored, likewise."
    ),
]
SinkOption = Annotated[
    int,
    typer.Option(
        "--kv-sink", metavar="N", help="Keep the first N tokens of a sequence exact, such as 4."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("-t", "--threads", help="Threads.  [default: one per core]")
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
