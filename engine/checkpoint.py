"""What every model file becomes: typed metadata and named tensors, in GGUF's vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError

_MISSING: Any = object()
_ENDS = 256  # bytes read at either end of a tensor for the fingerprint


class Metadata(Mapping[str, Any]):
    """Read-only key-value metadata with strict typed access.

    Values are Python scalars, strings, and lists or NumPy arrays of one element type.  Every getter
    raises InputError when the key is absent and no default was given, or has another type.
    """

    def __init__(self, values: Mapping[str, Any], source: str = "metadata") -> None:
        self._values = dict(values)
        self._source = source

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def int(self, key: str, default: Any = _MISSING) -> int:
        """The integer `key`; booleans and floats are refused."""
        return self._typed(key, default, int, "an integer")

    def float(self, key: str, default: Any = _MISSING) -> float:
        """The number `key`; an integer is accepted and converted."""
        return float(self._typed(key, default, (int, float), "a number"))

    def str(self, key: str, default: Any = _MISSING) -> str:
        return self._typed(key, default, str, "a string")

    def bool(self, key: str, default: Any = _MISSING) -> bool:
        return self._typed(key, default, bool, "true or false")

    def list(self, key: str, default: Any = _MISSING) -> list[Any]:
        value = self._typed(key, default, (list, np.ndarray), "an array")
        return value.tolist() if isinstance(value, np.ndarray) else value

    def _typed(self, key: Any, default: Any, types: Any, what: Any) -> Any:
        value = self._values.get(key, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                raise InputError(f"{self._source}: metadata key {key!r} is missing")
            return default
        # bool is a subclass of int, but `true` is never a count
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            seen = f"{value!r:.40}"
            raise InputError(f"{self._source}: metadata key {key!r} is {seen}, expected {what}")
        return value


@dataclass(frozen=True)
class Tensor:
    """One named weight, still in its file's bytes.

    `shape` is row-major: a matrix is (rows, columns) with a row's columns contiguous.  `data` is a
    read-only uint8 view [rows, bytes per row] ([1, bytes] for a vector, leading axes flattened into
    rows) of the mapped file; `type` is the ggml type name, such as "Q4_1" or "F32".
    """

    name: str
    type: str
    shape: tuple[int, ...]
    data: np.ndarray


@dataclass(frozen=True)
class Checkpoint:
    """A model file, or a set of them, opened but not loaded.

    Tensor names and metadata keys are GGUF's whatever the files' own format is.  `paths` are the
    files in order, for hashing and for messages.
    """

    paths: tuple[Path, ...]
    metadata: Metadata
    tensors: Mapping[str, Tensor]

    @property
    def path(self) -> Path:
        return self.paths[0]

    def fingerprint(self) -> str:
        """Hexadecimal digest of the metadata, the tensor table and both ends of every tensor.

        Cheap on a file of any size: what changes only in the middle of tensors is not seen.
        """
        digest = hashlib.sha256()
        for key in sorted(self.metadata):
            value = self.metadata[key]
            if isinstance(value, np.ndarray):
                value = [value.dtype.str, hashlib.sha256(value.tobytes()).hexdigest()]
            digest.update(json.dumps([key, value]).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(json.dumps([name, tensor.type, tensor.shape]).encode())
            for row in (tensor.data[0], tensor.data[-1]):
                digest.update(row[:_ENDS].tobytes() + row[-_ENDS:].tobytes())
        return digest.hexdigest()
