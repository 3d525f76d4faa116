"""Progress on stderr, drawn with rich, which is imported when there is something to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from rich.filesize import decimal

if TYPE_CHECKING:
    from rich.console import Console


class TerminalProgress:
    """A bar on a terminal; elsewhere one line when a task starts and one when it is done."""

    def __init__(self, console: Console | None = None) -> None:
        self._given = console

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return self._given or Console(stderr=True)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        if not self._console.is_terminal:
            self.say(f"{label}: {decimal(total)}")
            yield lambda done: None
            self.say(f"{label}: done")
            return
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=self._console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=done)

    def say(self, line: str) -> None:
        # soft_wrap: a line in a log stays one line whatever width rich assumes
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
