"""Progress is a bar on a terminal and two lines in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from minikv.progress import TerminalProgress


def test_a_log_gets_a_line_at_the_start_and_one_at_the_end():
    out = io.StringIO()
    progress = TerminalProgress(Console(file=out, force_terminal=False, width=20))
    with progress.task("downloading tiny [red] (Apache-2.0)", 1_500_000) as advance:
        advance(1)
        advance(1_500_000)
    assert out.getvalue().splitlines() == [
        "downloading tiny [red] (Apache-2.0): 1.5 MB",
        "downloading tiny [red] (Apache-2.0): done",
    ]


def test_a_failed_task_is_not_called_done():
    out = io.StringIO()
    progress = TerminalProgress(Console(file=out, force_terminal=False))
    with pytest.raises(ValueError, match="broken"), progress.task("downloading", 10):
        raise ValueError("broken")
    assert "done" not in out.getvalue()


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    progress = TerminalProgress(Console(file=out, force_terminal=True, width=120))
    with progress.task("downloading [red]", 2_000_000) as advance:
        advance(2_000_000)
    assert "downloading [red]" in out.getvalue() and "2.0/2.0 MB" in out.getvalue()


def test_lines_go_to_stderr(capsys):
    TerminalProgress().say("waiting")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "waiting\n")
