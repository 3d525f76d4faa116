"""From a path to a model that can run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from engine.aside import Aside
from engine.backends import new_ops
from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.gguf_file import open_gguf
from engine.memory import trim
from engine.model.archs import spec_of
from engine.model.archs.hf import hf_checkpoint
from engine.model.decoder import Decoder
from engine.ops import Ops
from engine.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_metadata


class Model(Decoder):
    """A decoder with, once asked for, its tokenizer.

    With `reads_text` the tokenizer is made at once, while the weights are packed.
    """

    def __init__(self, checkpoint: Checkpoint, ops: Ops, *, reads_text: bool = False) -> None:
        spec = spec_of(checkpoint)
        super().__init__(spec, checkpoint, ops)
        # begun when the weights' threads can do without Python
        self._reading = Aside(lambda: _tokenizer(checkpoint, spec.n_vocab)) if reads_text else None
        ops.finish()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises InputError if the model has none, or one that does not fit its vocabulary."""
        if self._reading is not None:
            return self._reading.result()
        return _tokenizer(self.checkpoint, self.spec.n_vocab)


def _tokenizer(checkpoint: Checkpoint, n_vocab: int) -> Tokenizer:
    path = checkpoint.path
    if path.suffix == ".json":  # a folder's first file is its config.json
        tokenizer = tokenizer_from_folder(path.parent)
    else:
        tokenizer = tokenizer_from_metadata(checkpoint.metadata)
    if tokenizer.n_vocab > n_vocab:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.n_vocab} tokens, "
            f"the embedding matrix only {n_vocab}"
        )
    trim()  # vocabularies pass through other forms on the way
    return tokenizer


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`: a GGUF file, one part of a split one, or a Hugging Face folder."""
    path = Path(path)
    return hf_checkpoint(path) if path.is_dir() else open_gguf(path)


def load_model(path: str | Path, *, backend: str = "cpu", threads: int | None = None) -> Model:
    """Open the model at `path` (GGUF file or Hugging Face folder) on a backend.

    Raises InputError with one line when the file is damaged, incomplete or not supported.
    """
    return Model(open_checkpoint(path), new_ops(backend, threads))
