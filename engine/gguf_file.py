"""Open a GGUF file, or all parts of a split one, as a Checkpoint over the mapped bytes."""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
from pathlib import Path

import numpy as np

from engine.checkpoint import Checkpoint, Metadata, Tensor
from engine.errors import InputError
from engine.gguf_header import Header, TensorInfo, read_header

DEFAULT_ALIGNMENT = 32
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def open_gguf(path: str | os.PathLike[str]) -> Checkpoint:
    """Open the GGUF file `path`; of a split model, any part stands for all of them.

    Only the header is read: tensors are views of the mapped file.  The metadata is that of the
    first part.  Raises InputError when a file is missing, unreadable, damaged, or parts disagree.
    """
    path = Path(path)
    metadata, tensors = _open_part(path)
    n_parts = metadata.int("split.count", 0)
    if n_parts <= 1:
        return Checkpoint((path,), metadata, tensors)
    return _open_split(path, metadata, tensors, n_parts)


def map_file(path: Path) -> mmap.mmap:
    """The bytes of the regular, non-empty file `path`, mapped read-only.

    Raises InputError with the reason when there are none.
    """
    try:
        # Asked before opening: opening a pipe would wait for a writer.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise InputError(f"{path}: {kind}, expected a model file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError(f"{path}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a path with a NUL character
        raise InputError(f"{str(path)!r}: cannot be read: {error}") from None


def _open_part(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    mapped = map_file(path)
    source = str(path)
    header = read_header(mapped, source)
    if hasattr(mmap, "MADV_DONTNEED"):  # what was read is in the metadata now, tens of MB at times
        mapped.madvise(mmap.MADV_DONTNEED, 0, header.size)
    metadata = Metadata(header.metadata, source)
    return metadata, _views(mapped, header, _alignment(metadata, source), source)


def _alignment(metadata: Metadata, source: str) -> int:
    alignment = metadata.int("general.alignment", DEFAULT_ALIGNMENT)
    if alignment < 8 or alignment & (alignment - 1):
        raise InputError(
            f"{source}: general.alignment is {alignment}, expected a power of two from 8 up"
        )
    return alignment


def _views(mapped: mmap.mmap, header: Header, alignment: int, source: str) -> dict[str, Tensor]:
    data = np.frombuffer(mapped, np.uint8)
    base = -(-header.size // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for info in header.tensors:
        if info.name in tensors:
            raise InputError(f"{source}: tensor {info.name!r:.80} appears twice")
        tensors[info.name] = _view(data, base, info, alignment, source)
    _check_no_overlap(header.tensors, source)
    return tensors


def _view(data: np.ndarray, base: int, info: TensorInfo, alignment: int, source: str) -> Tensor:
    if info.offset % alignment:
        raise InputError(
            f"{source}: tensor {info.name!r:.80} has offset {info.offset}, "
            f"expected a multiple of {alignment}"
        )
    rows, row_bytes = math.prod(info.shape[:-1]), info.row_bytes
    start, size = base + info.offset, rows * row_bytes
    if start + size > data.size:
        raise InputError(
            f"{source}: truncated: tensor {info.name!r:.80} {list(info.shape)} {info.type.name} "
            f"takes bytes {start} to {start + size}, the file has {data.size}"
        )
    view = data[start : start + size].reshape(rows, row_bytes)
    return Tensor(info.name, info.type.name, info.shape, view)


def _check_no_overlap(infos: list[TensorInfo], source: str) -> None:
    end, before = 0, ""
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset < end:
            raise InputError(
                f"{source}: tensors {before!r:.80} and {info.name!r:.80} overlap in the file"
            )
        end, before = info.offset + math.prod(info.shape[:-1]) * info.row_bytes, info.name


def _open_split(
    path: Path, metadata: Metadata, tensors: dict[str, Tensor], n_parts: int
) -> Checkpoint:
    """All `n_parts` parts of the split model of which `path`, already open, is one."""
    name = _PART_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != n_parts:
        raise InputError(
            f"{path}: one of {n_parts} parts (split.count), "
            f"but its name does not end in -NNNNN-of-{n_parts:05d}.gguf"
        )
    given = int(name["part"])
    paths = [
        path.with_name(f"{name['stem']}-{part:05d}-of-{n_parts:05d}.gguf")
        for part in range(1, n_parts + 1)
    ]
    first, merged = metadata, {}
    for number, part in enumerate(paths):
        found, some = (metadata, tensors) if number + 1 == given else _open_part(part)
        _check_part(part, found, number, metadata)
        if twice := merged.keys() & some.keys():
            raise InputError(f"{part}: tensor {min(twice)!r:.80} is also in an earlier part")
        merged |= some
        first = found if number == 0 else first
    n_tensors = first.int("split.tensors.count")
    if n_tensors != len(merged):
        raise InputError(
            f"{paths[0]}: split.tensors.count is {n_tensors}, the parts hold {len(merged)} tensors"
        )
    return Checkpoint(tuple(paths), first, merged)


def _check_part(path: Path, metadata: Metadata, number: int, given: Metadata) -> None:
    """Part `number`, counted from 0, must say so, and agree with the `given` part on the rest."""
    expected = {
        "split.no": number,
        "split.count": given["split.count"],
        "split.tensors.count": given.int("split.tensors.count"),
    }
    for key, value in expected.items():
        if metadata.int(key) != value:
            raise InputError(f"{path}: {key} is {metadata.int(key)}, expected {value}")
