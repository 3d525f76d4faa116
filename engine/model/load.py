"""From a path to a model that can run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.gguf_file import open_gguf
from engine.model.archs import spec_of
from engine.model.decoder import Decoder
from engine.ops import Ops


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`: a GGUF file, one part of a split one, or a Hugging Face folder."""
    path = Path(path)
    if path.is_dir():
        from engine.model.archs.hf import hf_checkpoint

        return hf_checkpoint(path)
    return open_gguf(path)


class Model(Decoder):
    """A decoder with the file it came from and, once asked for, its tokenizer."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops) -> None:
        super().__init__(spec_of(checkpoint), checkpoint, ops)
        self.checkpoint = checkpoint

    @cached_property
    def tokenizer(self):
        """Raises InputError if the model has none, or one that does not fit its vocabulary."""
        from engine.tokenizer import tokenizer_from_folder, tokenizer_from_metadata

        folder = self.checkpoint.path.parent
        if self.checkpoint.path.suffix == ".gguf":
            tokenizer = tokenizer_from_metadata(self.checkpoint.metadata)
        else:
            tokenizer = tokenizer_from_folder(folder)
        if tokenizer.n_vocab > self.spec.n_vocab:
            raise InputError(
                f"{self.checkpoint.path}: the tokenizer has {tokenizer.n_vocab} tokens, "
                f"the embedding matrix only {self.spec.n_vocab}"
            )
        return tokenizer
