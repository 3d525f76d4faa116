"""A tokenizer from a Hugging Face folder: tokenizer.json, or tokenizer.model alone.

Only the library that the files at hand need is imported.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import InputError
from engine.tokenizer.base import Tokenizer
from engine.tokenizer.settings import FolderSettings


def tokenizer_from_folder(path: Path) -> Tokenizer:
    """The tokenizer of the folder `path`.

    BOS, EOS, end-of-generation ids and the chat template come from tokenizer_config.json,
    generation_config.json, config.json and chat_template.jinja, as far as these are there.
    InputError when no tokenizer is there, or a file is damaged or contradicts another.
    """
    path = Path(path)
    settings = FolderSettings.read(path)
    if (path / "tokenizer.json").exists():
        from engine.tokenizer.json_file import read_tokenizer_json

        return read_tokenizer_json(path / "tokenizer.json", settings)
    if (path / "tokenizer.model").exists():
        from engine.tokenizer.model_file import read_tokenizer_model

        return read_tokenizer_model(path / "tokenizer.model", settings)
    raise InputError(f"{path}: no tokenizer found, expected tokenizer.json or tokenizer.model")
