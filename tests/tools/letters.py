"""A model of a few kilobytes with a stand-in tokenizer: one token per character."""

from __future__ import annotations

from pathlib import Path

from engine import load_model
from engine.model.load import Model

ORACLE = Path(__file__).parents[1] / "fixtures" / "oracle" / "llama"
VOCAB = 96
TEXT = "".join(chr(32 + i * 7 % 90) for i in range(300))


class Letters:
    add_bos, bos = True, 1

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        return ([self.bos] if add_special else []) + [ord(c) % VOCAB for c in text]


def letters_model(path: Path = ORACLE, backend: str = "cpu") -> Model:
    """The model at `path`, read with `Letters`."""
    model = load_model(path, backend=backend)
    model.__dict__["tokenizer"] = Letters()
    return model
