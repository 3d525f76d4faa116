"""The inference engine: token ids in, logits out.  Text, printing and JSON live in `minikv`.

The names below are the public API; they are imported when first used, so that a command which only
needs an error type or a path does not pay for the backends.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import InputError
    from engine.kv.budget import Budget
    from engine.model.load import Model, load_model
    from engine.sampler import Sampler, SamplerSpec
    from engine.session import Session

_HOMES = {
    "Budget": "engine.kv.budget",
    "InputError": "engine.errors",
    "Model": "engine.model.load",
    "Sampler": "engine.sampler",
    "SamplerSpec": "engine.sampler",
    "Session": "engine.session",
    "load_model": "engine.model.load",
}
__all__ = ["Budget", "InputError", "Model", "Sampler", "SamplerSpec", "Session", "load_model"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(home), name)
