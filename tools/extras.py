"""Libraries that only some tools need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from engine.errors import InputError


def extra(module: str) -> Any:
    """Import an optional module.  Raises InputError with the way out if it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise InputError(
            f"{package} is not installed: in minikv's folder, pip install -e '.[tools]'"
        ) from None
