"""Tell the user why the first answer takes its time."""

from __future__ import annotations

from collections.abc import Callable


def announce_compilation(say: Callable[[], None]) -> None:
    """Call `say` once if this process has to compile a kernel: not when the disk cache has it."""
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, event) -> None:
            nonlocal said
            if not said:
                said = True
                say()

        def on_end(self, event) -> None:
            pass

    said = False
    event.register("numba:compile", Listener())
