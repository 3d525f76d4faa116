"""Tell the user why the first answer takes its time."""

from __future__ import annotations

from collections.abc import Callable


def announce_compilation(say: Callable[[], None]) -> None:
    """Call `say` once if this process has to compile a kernel: not when the disk cache has it."""
    from engine.cpu.jit import on_compilation

    def tell() -> None:
        nonlocal said
        if not said:
            said = True
            say()

    said = False
    on_compilation(tell)
