"""Run the `minikv` command, in this process or as a child."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minikv.cli import main

ROOT = Path(__file__).parents[2]
Run = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    status: int | str | None
    out: str
    err: str


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function of the command's arguments and, as `stdin`, what a pipe hands it."""

    def run(*args: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["minikv", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return Result(left.value.code, out, err)

    return run


def child(*args: object, **options: Any) -> subprocess.Popen[bytes]:
    """The command as a process of its own, its output in pipes."""
    command = [sys.executable, "-m", "minikv", *map(str, args)]
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    chosen: dict[str, Any] = {"preexec_fn": heed_ctrl_c} | pipes | options
    return subprocess.Popen(command, env=environment, text=False, **chosen)


def heed_ctrl_c() -> None:
    """In a new process: a shell starts background jobs deaf to Ctrl-C, and tests may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
