"""Where minikv keeps files for its user.

The only file of `minikv` that reads environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from engine.errors import InputError


def cache_dir() -> Path:
    """The user's cache folder for minikv, which need not exist yet.

    MINIKV_HOME if set, else `minikv` in XDG_CACHE_HOME or in ~/.cache.  Raises InputError when
    none of them can be found.
    """
    own = os.environ.get("MINIKV_HOME")
    if own:
        return Path(os.path.abspath(os.path.expanduser(own)))
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory rules: a relative value is to be ignored.
    if os.path.isabs(xdg):
        return Path(xdg) / "minikv"
    try:
        return Path.home() / ".cache" / "minikv"
    except RuntimeError:
        raise InputError(
            "no home directory to keep models in: set MINIKV_HOME to a folder"
        ) from None


def child_environment(**changes: str) -> Mapping[str, str]:
    """This process's environment with `changes`, for a child process."""
    return os.environ | changes
