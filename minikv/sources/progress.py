"""How a download tells what it is doing, whoever draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """What a caller of `resolve` may pass to watch it."""

    def task(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show a task of `total` bytes; the value is called with the bytes done so far.

        Leaving the context ends the task; leaving it by an exception means that it failed.
        """
        ...

    def say(self, line: str) -> None:
        """Show one line of plain text."""
        ...


class Silent:
    """A Progress that shows nothing."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None

    def say(self, line: str) -> None:
        pass


SILENT = Silent()
