"""A policy as a TOML file.

k = "int3nsep"        # of all layers; bf16 where it is not given
v = "int3nsep"
sink = 4              # first tokens that stay exact
recent = 128          # at least so many of the newest tokens are exact
tail = "bf16"         # how: f32, f16 or bf16
[[layers]]            # other types for some layers; later entries win
first = 2             # or last = 2, or layers = "0,3-5", counted from 0
k = "q8_0"
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.kv.cache_type import CacheType
from engine.kv.format import Side, TokenFormat
from engine.kv.formats import BF16, FLOATS, kv_format, side_type
from engine.kv.policy import Layers, Override, Policy

_TOP = ("k", "v", "sink", "recent", "tail", "layers")
_SIDES: tuple[Side, Side] = ("k", "v")
_WHERE = ("first", "last", "layers")
_MOST = 1 << 16  # bytes, so that a wrong file is refused and not read for ever
_RANGES = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(, ?[0-9]{1,4}(-[0-9]{1,4})?)*")


def read_policy(path: str | Path) -> Policy:
    """The policy in the file `path`, named after the file and its bytes' SHA-256.

    Raises InputError with one line that names the file, the key and the value seen.
    """
    data = _read(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    # results, tables and terminals take the name as it is
    name = "".join(char if char.isprintable() else "\ufffd" for char in Path(path).name)
    digest = hashlib.sha256(data).hexdigest()[:12]
    return parse_policy(text, f"{name}@{digest}", str(path))


def parse_policy(text: str, name: str, path: str | None = None) -> Policy:
    """The policy that a file's `text` says, called `name`.

    Raises InputError with one line that begins with `path`, by default the name.
    """
    path = name if path is None else path
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    reader = _Reader(path, table)
    return Policy(name, reader.types(), reader.overrides(), text)


def _read(path: str | Path) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _MOST:
        raise InputError(f"{path}: longer than {_MOST >> 10} KiB: not a KV policy")
    return data


class _Reader:
    """The values of the file's table, checked."""

    def __init__(self, path: str, table: Mapping[str, Any]) -> None:
        self._path, self._table = path, table
        self._check_keys(table, _TOP, "the file")
        self._sink, self._recent = self._count("sink"), self._count("recent")
        self._tail = self._tail_format(table.get("tail", BF16.name))

    def types(self) -> tuple[CacheType, CacheType]:
        k, v = (self._type(self._table.get(side, BF16.name), "", side) for side in _SIDES)
        return k, v

    def overrides(self) -> tuple[Override, ...]:
        entries = self._table.get("layers", [])
        if not (isinstance(entries, list) and all(isinstance(e, dict) for e in entries)):
            raise self._refused("layers", f"{_shown(entries)}: write [[layers]] over each entry")
        return tuple(self._override(i, entry) for i, entry in enumerate(entries, 1))

    def _override(self, number: int, entry: Mapping[str, Any]) -> Override:
        where = f"[[layers]] {number}"
        self._check_keys(entry, (*_WHERE, "k", "v"), where)
        given = [name for name in _WHERE if name in entry]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise self._refused(where, f"{found} of first, last and layers: give exactly one")
        if not entry.keys() & {"k", "v"}:
            raise self._refused(where, "it changes nothing: give k, v or both")
        k, v = (
            self._type(entry[side], f"{where}: ", side) if side in entry else None
            for side in _SIDES
        )
        return Override(self._layers(where, given[0], entry[given[0]]), k, v)

    def _layers(self, where: str, name: str, value: Any) -> Layers:
        said = f"{self._path}: {where}: {name} = {_shown(value)}"
        if name != "layers":
            if type(value) is not int or value < 1:
                raise InputError(f"{said}: a number of layers, 1 or more")
            return Layers(said, first=value) if name == "first" else Layers(said, last=value)
        if not (isinstance(value, str) and _RANGES.fullmatch(value)):
            raise InputError(f'{said}: layers counted from 0, such as "0,3-5"')
        ends = [part.strip().split("-") for part in value.split(",")]
        ranges = tuple((int(part[0]), int(part[-1])) for part in ends)
        if any(end < start for start, end in ranges):
            raise InputError(f"{said}: a range ends before it begins")
        return Layers(said, ranges=ranges)

    def _type(self, value: Any, where: str, side: Side) -> CacheType:
        key = where + side
        if not isinstance(value, str):
            raise self._refused(key, f'{_shown(value)}: the name of a type, such as "q8_0"')
        try:
            found = kv_format(side_type(value, side))
        except InputError as error:
            raise self._refused(key, str(error)) from None
        if side == "v" and found.modifiers.bias is not None:
            raise self._refused(key, f"{value}: +b and +nob are for keys; values keep their bias")
        try:
            return CacheType.of(found, self._sink, self._tail, self._recent)
        except InputError as error:  # more sinks than a page of this type holds
            raise self._refused("sink", str(error)) from None

    def _tail_format(self, value: Any) -> TokenFormat:
        for kind in FLOATS:
            if kind.name == value:
                return kind
        names = ", ".join(kind.name for kind in FLOATS)
        raise self._refused("tail", f"{_shown(value)}: choose from {names}")

    def _count(self, key: str) -> int:
        value = self._table.get(key, 0)
        if type(value) is not int or value < 0:
            raise self._refused(key, f"{_shown(value)}: a number of tokens, 0 or more")
        return value

    def _check_keys(self, table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in table:
            if key not in known:
                one = " (one for all layers)" if key in _TOP else ""
                raise self._refused(
                    _shown(key), f"not a key of {where}{one}. Choose from: {', '.join(known)}"
                )

    def _refused(self, key: str, why: str) -> InputError:
        return InputError(f"{self._path}: {key}: {why}")


def _shown(value: Any) -> str:
    """A value so that an error message stays one short line."""
    return f"{value!r:.40}"
