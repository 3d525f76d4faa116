"""The only place that reads the environment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """The directory for downloaded models and compiled kernels, created if need be.

    MINIKV_HOME, else `minikv` in XDG_CACHE_HOME, else in ~/.cache; a directory for temporary files
    if none of them can be written.
    """
    home = os.environ.get("MINIKV_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(home) if home else Path(base) / "minikv"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.gettempdir()) / f"minikv-{os.getuid()}"


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
