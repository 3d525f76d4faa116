"""The families: from a checkpoint's metadata to a ModelSpec."""

from __future__ import annotations

from collections.abc import Callable

from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.model.archs.gemma import gemma3
from engine.model.archs.llama import llama
from engine.model.archs.qwen import qwen
from engine.model.spec import ModelSpec

ARCHS: dict[str, Callable[[Checkpoint], ModelSpec]] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": qwen,
    "qwen3": qwen,
    "gemma3": gemma3,
}


def spec_of(checkpoint: Checkpoint) -> ModelSpec:
    """The checkpoint's model, or InputError naming what is unknown or out of range."""
    arch = checkpoint.metadata.str("general.architecture")
    family = ARCHS.get(arch)
    if family is None:
        raise InputError(
            f"{checkpoint.path}: architecture {arch!r} is not supported. "
            f"Supported: {', '.join(ARCHS)}"
        )
    return family(checkpoint)
