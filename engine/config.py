"""The only place that reads the environment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from engine.errors import InputError


def cache_dir() -> Path:
    """The directory for downloaded models and compiled kernels, created if need be.

    MINIKV_HOME, else `minikv` in XDG_CACHE_HOME or in ~/.cache; a directory for temporary files if
    that default cannot be written.  Raises InputError when MINIKV_HOME cannot.
    """
    own = os.environ.get("MINIKV_HOME")
    try:
        path = Path(own).expanduser().absolute() if own else _default()
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        writable, path = False, Path(own or "")
    if writable:
        return path
    if own:
        raise InputError(f"MINIKV_HOME is {path}: not a directory that can be written")
    path = Path(tempfile.gettempdir()) / f"minikv-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _default() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # the XDG base directory rules: a relative value is to be ignored
    return (base if base.is_absolute() else Path.home() / ".cache") / "minikv"


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_their_own(threads: int) -> tuple[int, ...]:
    """A core for each of `threads` threads, of those that this process may run on.

    Raises InputError where threads cannot be bound to cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("pinned threads: this system cannot bind threads to cores")
    return tuple(sorted(os.sched_getaffinity(0))[:threads])


def target_processor() -> tuple[str | None, str | None]:
    """The name and the features of the processor to compile for, None for this one's: what Numba
    calls NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    name = os.environ.get("NUMBA_CPU_NAME")
    plain = "" if name == "generic" else None
    return name, os.environ.get("NUMBA_CPU_FEATURES", plain)


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment with `changes`, for a child process."""
    return os.environ | changes
