"""The inference engine: token ids in, logits out.  Text, printing and JSON live in `minikv`."""

from __future__ import annotations

from pathlib import Path

from engine.backends import new_ops
from engine.errors import InputError
from engine.model.load import Model, open_checkpoint
from engine.sampler import Sampler, SamplerSpec
from engine.session import Session

__all__ = ["InputError", "Model", "Sampler", "SamplerSpec", "Session", "load_model"]


def load_model(path: str | Path, *, backend: str = "cpu", threads: int | None = None) -> Model:
    """Open the model at `path` (GGUF file or Hugging Face folder) on a backend.

    Raises InputError with one line when the file is damaged, incomplete or not supported.
    """
    return Model(open_checkpoint(path), new_ops(backend, threads))
