"""Open a Hugging Face model folder: config.json and safetensors files, names left as they are."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Tensor
from engine.errors import InputError
from engine.gguf_file import map_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Bytes per value of the types weights come in, which ggml knows by the same names.
_TYPES = {"F32": 4, "F16": 2, "BF16": 2}
# The format's own limit, so that no reader parses gigabytes of JSON.
_MAX_HEADER = 100_000_000
_SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")


@dataclass(frozen=True)
class HFFolder:
    """The contents of a folder: `files` are config.json and the weight files, in order."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]


def open_hf_folder(path: str | os.PathLike[str]) -> HFFolder:
    """Read config.json and map the weights of the folder `path`.

    Tensors keep the folder's names and are views of the mapped files, of type F32, F16 or BF16.
    Raises InputError when a file is missing or damaged, or files disagree.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    single, index = path / SINGLE, path / INDEX
    if single.exists():
        return HFFolder(path, config, _open_safetensors(single), (path / "config.json", single))
    if not index.exists():
        raise InputError(f"{path}: no weights found, expected {SINGLE} or {INDEX}")
    shards = _shards(index)
    tensors: dict[str, Tensor] = {}
    for shard, names in shards.items():
        tensors |= _open_shard(shard, names, index)
    return HFFolder(path, config, tensors, (path / "config.json", *shards))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`; InputError when there is none."""
    return _parse_object(bytes(map_file(path)), str(path))


def _parse_object(text: bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise InputError(f"{source}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # also what undecodable text and absurdly long numbers raise
        raise InputError(f"{source}: not valid JSON: {_one_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{source}: holds a JSON {type(value).__name__}, expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r:.80} appears twice")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _shards(index: Path) -> dict[Path, set[str]]:
    """The weight files an index names, in order, with the tensors each must hold."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: weight_map is missing or empty")
    names: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise InputError(f"{index}: {file!r:.80} is not the name of a file in this folder")
        names.setdefault(file, set()).add(tensor)
    return {index.with_name(file): names[file] for file in sorted(names)}


def _open_shard(shard: Path, names: set[str], index: Path) -> dict[str, Tensor]:
    tensors = _open_safetensors(shard)
    if missing := names - tensors.keys():
        raise InputError(f"{shard}: tensor {min(missing)!r:.80} is missing, {index.name} names it")
    if extra := tensors.keys() - names:
        raise InputError(f"{shard}: tensor {min(extra)!r:.80} is not named by {index.name}")
    return tensors


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    """The file is a length (u64), a JSON header of that length, and the tensors' bytes."""
    mapped = map_file(path)
    source = str(path)
    size = struct.unpack_from("<Q", mapped)[0] if len(mapped) >= 8 else None
    if size is None or size > min(len(mapped) - 8, _MAX_HEADER):
        raise InputError(f"{source}: not a safetensors file, or truncated: no header")
    header = _parse_object(mapped[8 : 8 + size], source)
    header.pop("__metadata__", None)
    data = np.frombuffer(mapped, np.uint8)[8 + size :]
    tensors: dict[str, Tensor] = {}
    end = 0
    # The format allows no holes: in order of offset, each tensor begins where the one before ends.
    for name, entry in sorted(header.items(), key=lambda item: _start(item[1])):
        tensors[name] = tensor = _tensor(name, entry, data, end, source)
        end += tensor.data.size
    if end != data.size:
        raise InputError(f"{source}: {data.size - end} bytes after the last tensor")
    return tensors


def _start(entry: Any) -> int:
    """Where an entry says it begins; -1, which no tensor may, when it does not say."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2 and _is_count(offsets[0]):
        return offsets[0]
    return -1


def _tensor(name: str, entry: Any, data: np.ndarray, start: int, source: str) -> Tensor:
    """The view of one tensor, which must begin at `start`."""

    def fail(problem: str) -> InputError:
        return InputError(f"{source}: tensor {name!r:.80} {problem}")

    if not isinstance(entry, dict):
        raise fail("has no description in the header")
    kind, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise fail(f"has dtype {kind!r:.40}, supported are {', '.join(_TYPES)}")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4 or not all(map(_is_size, shape)):
        raise fail(f"has shape {shape!r:.80}, expected 1 to 4 positive dimensions")
    rows, row_bytes = math.prod(shape[:-1]), shape[-1] * _TYPES[kind]
    end = start + rows * row_bytes
    if entry.get("data_offsets") != [start, end]:
        offsets = f"{entry.get('data_offsets')!r:.80}"
        raise fail(f"has data_offsets {offsets}, expected {[start, end]!r:.80}")
    if end > data.size:
        raise fail(f"ends at byte {end!r:.40} of the data, truncated after {data.size}")
    return Tensor(name, kind, tuple(shape), data[start:end].reshape(rows, row_bytes))


def _is_count(value: Any) -> bool:
    # The bound keeps products printable: Python refuses to show numbers of thousands of digits.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_size(value: Any) -> bool:
    return _is_count(value) and value > 0
