"""What a Hugging Face folder says about its tokenizer outside the vocabulary itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.hf_folder import read_json


@dataclass(frozen=True)
class FolderSettings:
    """The JSON files of a folder; those that are missing are empty."""

    path: Path
    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any]
    model: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> FolderSettings:
        names = ("tokenizer_config.json", "generation_config.json", "config.json")
        files = (path / name for name in names)
        return cls(path, *(read_json(file) if file.exists() else {} for file in files))

    def special(self, name: str, ids: Mapping[str, int]) -> int | None:
        """The id of bos_token or eos_token: by its text if that is given, else by its number."""
        text = self.tokenizer.get(f"{name}_token")
        if isinstance(text, Mapping):  # an added token with its flags
            text = text.get("content")
        if text is None:
            return next(iter(self._numbers(f"{name}_token_id", len(ids))), None)
        if not isinstance(text, str) or text not in ids:
            raise self._refused("tokenizer_config.json", f"{name}_token", text, "a known token")
        return ids[text]

    def end_ids(self, n_vocab: int) -> frozenset[int]:
        """Every id that the generation and model settings call an end of sequence."""
        return frozenset(self._numbers("eos_token_id", n_vocab))

    def add_bos(self) -> bool | None:
        """Whether a text starts with BOS; None when the settings do not say."""
        value = self.tokenizer.get("add_bos_token")
        if value is not None and not isinstance(value, bool):
            raise self._refused("tokenizer_config.json", "add_bos_token", value, "true or false")
        return value

    def chat_template(self) -> str | None:
        file = self.path / "chat_template.jinja"
        if file.exists():
            try:
                return file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{file}: cannot be read: {error}") from None
        value = self.tokenizer.get("chat_template")
        if isinstance(value, list):  # several by name
            entries = [entry for entry in value if isinstance(entry, Mapping)]
            value = next((e.get("template") for e in entries if e.get("name") == "default"), value)
        if value is not None and not isinstance(value, str):
            raise self._refused("tokenizer_config.json", "chat_template", value, "a template")
        return value

    def _numbers(self, key: str, n_vocab: int) -> list[int]:
        """The ids under `key`, one or a list of them, in generation_config.json and config.json."""
        found = []
        for file, values in (
            ("generation_config.json", self.generation),
            ("config.json", self.model),
        ):
            value = values.get(key)
            for id in value if isinstance(value, list) else [value]:
                if id is None:
                    continue
                if type(id) is not int or not 0 <= id < n_vocab:
                    raise self._refused(file, key, id, f"an id below {n_vocab}")
                found.append(id)
        return found

    def _refused(self, file: str, key: str, seen: object, expected: str) -> InputError:
        return InputError(f"{self.path / file}: {key} is {seen!r:.60}, expected {expected}")
