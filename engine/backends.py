"""The registry of backends, each imported only when it is asked for."""

from __future__ import annotations

from engine.errors import InputError
from engine.ops import Ops

BACKENDS = ("cpu", "reference")


def new_ops(name: str, threads: int | None = None, pin: bool = False) -> Ops:
    """The backend `name`, working with `threads` threads, by default one per available core; `pin`
    keeps each on a core of its own.

    Raises InputError for an unknown name, a number of threads that the machine does not have, and
    where threads cannot be bound to cores.
    """
    if name == "cpu":
        from engine.cpu import CpuOps

        return CpuOps(threads, pin)
    if name == "reference":
        from engine.reference import ReferenceOps

        return ReferenceOps()
    raise InputError(f"{name}: not a backend. Choose from: {', '.join(BACKENDS)}")
