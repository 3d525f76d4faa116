"""A cache on disk: one file that says what it holds.

    "minikvkv" | version u32 | size u32 | header, JSON [size] | sha256 | pages | sha256

Integers are little-endian, and a digest covers everything before it.  The header has `n` tokens,
`n_ctx`, `budget` in bytes or null, `about` (what the caller says of the sequence) and `layers`:
sizes and, per side, the type with the version of its bytes, the page length, the tail's type, sinks
and window, in use and as asked for, what is evicted, and the smaller type with the number of oldest
pages that are in it.  Layer by layer, keys before values, follow: of the sinks' page the rows in
use, the packed pages that are held, each uint8 [kv_heads, bytes] as in memory, of the open pages
the rows in use and, for keys that weigh their queries, those tokens' rows, float32
[tokens, kv_heads, head_dim].  The file is as long as the header says.

The digests find damage; they do not prove who wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from struct import Struct
from typing import IO, Any, cast

import numpy as np

from engine.errors import InputError
from engine.kv.cache import CacheType, KVCache, LayerCache, SideCache
from engine.kv.format import KVFormat, TokenFormat
from engine.kv.formats import kv_format
from engine.kv.policy import Types
from engine.kv.stored import StoredSide, count, views

VERSION = 2  # the first knew no sinks, no windows and no budget
_MAGIC = b"minikvkv"
_START = Struct("<8sII")
_DIGEST_NBYTES = hashlib.sha256().digest_size
_ALIGNMENT = 64  # bytes: pages begin at a multiple


def save_cache(path: str | Path, cache: KVCache, about: Mapping[str, Any]) -> None:
    """Write `cache` to `path`; `about` is JSON.

    A file that is there already is replaced in one step once all is on disk, so an error or an
    interruption leaves it as it was.  Raises InputError if the file cannot be written.
    """
    layers = [_layer_entry(layer) for layer in cache.layers]
    header = {
        "n": cache.n, "n_ctx": cache.n_ctx, "budget": cache.budget, "about": about,
        "layers": layers,
    }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_START.size + len(text) + _DIGEST_NBYTES) % _ALIGNMENT)
    with _replacing(Path(path)) as file:
        digest = hashlib.sha256()

        def write(data: bytes | memoryview) -> None:
            digest.update(data)
            file.write(data)

        write(_START.pack(_MAGIC, VERSION, len(text)) + text)
        write(digest.digest())
        for side in _sides(cache):
            for view in views(side):
                write(np.ascontiguousarray(view).data)
            if side.queries is not None:
                rows = side.queries.places(StoredSide.of(side).open_tokens(cache.n))
                write(side.queries.rows[rows].data)
        write(digest.digest())


def _sides(cache: KVCache) -> Iterator[SideCache]:
    for layer in cache.layers:
        yield from (layer.k, layer.v)


def _layer_entry(layer: LayerCache) -> dict[str, Any]:
    sides = {"k": StoredSide.of(layer.k).entry(), "v": StoredSide.of(layer.v).entry()}
    return _sizes(layer) | sides


def _sizes(layer: LayerCache) -> dict[str, Any]:
    return {
        "kv_heads": layer.k.kv_heads, "head_dim": layer.k.head_dim, "window": layer.window,
    }  # fmt: skip


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` once the body has written it whole."""
    final = Path(os.path.realpath(path))  # a link stays one
    new = None
    try:
        # readable by its owner alone: a conversation is private
        with tempfile.NamedTemporaryFile(
            prefix=f".{final.name}.", dir=final.parent, delete=False
        ) as file:
            new = file.name
            yield cast(IO[bytes], file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, final)
    except BaseException as error:
        if new is not None:
            with suppress(OSError):
                os.unlink(new)
        if isinstance(error, OSError):
            raise InputError(f"{path}: not saved: {error.strerror or error}") from error
        raise


class Snapshot:
    """A file that is open for reading: its header is whole, its pages are not read yet.

    `types` are those of each layer's keys and values; `budget` is in bytes or None.
    """

    def __init__(self, path: str | Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file
        self._digest = hashlib.sha256()
        self._nbytes = os.fstat(file.fileno()).st_size
        text = self._header()
        try:
            header = json.loads(text)
            self.n, self.n_ctx = count(header["n"]), count(header["n_ctx"])
            self.budget = header.get("budget") and count(header["budget"])
            self.about: dict[str, Any] = dict(header["about"])
            self._layers: list[dict[str, Any]] = header["layers"]
            self._saved = [self._side(layer, name) for layer in self._layers for name in ("k", "v")]
            if not self._saved:
                raise ValueError("no layers")
            pairs = zip(self._saved[::2], self._saved[1::2], strict=True)
            self.types: list[Types] = [(k.asked, v.asked) for k, v in pairs]
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise self.refused(f"its header is not one that minikv writes: {error!r}") from error

    def refused(self, why: str) -> InputError:
        return InputError(f"{self.path}: {why}")

    def check_sink(self, sink: int) -> None:
        """Raise InputError unless the first `sink` tokens are those that were kept exact."""
        for k, _ in self.types:
            self._check_sink(k, sink)

    def _check_sink(self, have: CacheType, sink: int) -> None:
        if have.sink != sink:
            raise self.refused(
                f"saved with {have.sink} exact first tokens, behind which its pages begin; it "
                f"cannot go on with {sink}"
            )

    def fill(self, cache: KVCache) -> None:
        """Read the pages into the empty `cache`.

        Where its types are not the saved ones, pages are unpacked and packed anew, one by one; this
        needs pages of one length.  Raises InputError, and the cache is then of no use, if the file
        is damaged or its sizes or page lengths are not the cache's.
        """
        if self.n > cache.n_ctx:
            raise self.refused(
                f"it holds {self.n} tokens, more than the context of {cache.n_ctx}; raise -c"
            )
        if self.n > cache.capacity:
            raise self.refused(
                f"it holds {self.n} tokens, more than the {cache.capacity} that fit a KV budget of "
                f"{cache.budget} bytes"
            )
        self._check_sizes(cache)
        pairs = list(zip(_sides(cache), self._saved, strict=True))
        for side, saved in pairs:
            self._check_convertible(side, saved)
        self._check_length(sum(saved.nbytes(side, self.n) for side, saved in pairs))
        for layer in cache.layers:
            layer.count.settle(self.n)
        for layer, *saved in zip(cache.layers, self._saved[::2], self._saved[1::2], strict=True):
            self._fill_layer(layer, *saved)
        self._check_digest("pages")

    def _header(self) -> bytes:
        magic, version, nbytes = _START.unpack(self._bytes(_START.size))
        if magic != _MAGIC:
            raise self.refused("not a saved session of minikv")
        if not 1 <= version <= VERSION:
            raise self.refused(f"saved in version {version}; this minikv reads 1 to {VERSION}")
        text = self._bytes(nbytes)
        self._check_digest("header")
        return text

    def _bytes(self, nbytes: int) -> bytes:
        self._check_present(self._file.tell() + nbytes)
        data = self._file.read(nbytes)
        self._digest.update(data)
        return data

    def _check_present(self, nbytes: int) -> None:
        if self._nbytes < nbytes:
            raise self.refused(f"cut off: {self._nbytes} bytes of at least {nbytes}")

    def _check_digest(self, what: str) -> None:
        want = self._digest.digest()
        if self._bytes(_DIGEST_NBYTES) != want:
            raise self.refused(f"damaged: the checksum of its {what} is wrong")

    def _check_length(self, pages_nbytes: int) -> None:
        whole = self._file.tell() + pages_nbytes + _DIGEST_NBYTES
        self._check_present(whole)
        if self._nbytes != whole:
            raise self.refused(f"damaged: {self._nbytes} bytes instead of {whole}")

    def _side(self, layer: Mapping[str, Any], name: str) -> StoredSide:
        return StoredSide.read(layer[name], self.n, layer["window"], self._format)

    def _format(self, name: str, layout: int) -> Any:
        try:
            found = kv_format(name)
        except InputError as error:
            raise self.refused(str(error)) from error
        if found.layout != layout:
            raise self.refused(
                f"{name} is saved in layout {layout}; this minikv reads {found.layout}"
            )
        return found

    def _check_sizes(self, cache: KVCache) -> None:
        if len(self._layers) != len(cache.layers):
            raise self.refused(
                f"it has {len(self._layers)} layers, the model has {len(cache.layers)}"
            )
        for saved, layer in zip(self._layers, cache.layers, strict=True):
            for name, size in _sizes(layer).items():
                if saved[name] != size:
                    raise self.refused(
                        f"layer {layer.index} has {name} {saved[name]}, the model's has {size}"
                    )

    def _check_convertible(self, side: SideCache, saved: StoredSide) -> None:
        have, want = saved.type, side.type
        if have.modifiers != want.modifiers:
            raise self.refused(f"saved as {have.name}, which {want.name} cannot take over")
        self._check_sink(have, want.sink)
        if have.page_tokens != want.page_tokens:
            raise self.refused(
                f"saved as {have.format.name} in pages of {have.page_tokens} tokens; "
                f"{want.format.name} has pages of {want.page_tokens} and cannot take them over"
            )
        if saved.evicted > want.sealed(self.n - want.sink):
            raise self.refused(f"pages are missing that {want.recent} exact newest tokens need")

    def _fill_layer(self, layer: LayerCache, *both: StoredSide) -> None:
        sides = layer.k, layer.v
        shrunk = (
            min(saved.shrunk, s.type.sealed(s.paged)) if s.type.small else 0
            for s, saved in zip(sides, both, strict=True)
        )
        for side, saved, small in zip(sides, both, layer.must_shrink(*shrunk), strict=True):
            self._fill_side(side, saved, small)

    def _fill_side(self, side: SideCache, saved: StoredSide, shrunk: int) -> None:
        side.lay_out(saved.evicted, saved.sinks_evicted, shrunk)
        have, want = saved.forms(self.n), StoredSide.of(side).forms(self.n)
        for view, (old, tokens), (new, _) in zip(views(side), have, want, strict=True):
            nbytes = side.kv_heads * old.page_nbytes(tokens, side.head_dim)
            data = np.frombuffer(self._bytes(nbytes), np.uint8).reshape(side.kv_heads, -1)
            view[:] = self._converted(side, data, old, new)
        rows = np.frombuffer(self._bytes(saved.queries_nbytes(side, self.n)), np.float32)
        if side.queries is not None and rows.size:  # without them every query counts alike
            have, want = (s.open_tokens(self.n) for s in (saved, StoredSide.of(side)))
            both = range(max(have.start, want.start), want.stop)
            rows = rows.reshape(-1, side.kv_heads, side.head_dim)[len(have) - len(both) :]
            side.queries.rows[side.queries.places(both)] = rows

    def _converted(
        self, side: SideCache, data: np.ndarray, old: KVFormat, new: KVFormat
    ) -> np.ndarray:
        """The tokens of `data` uint8 [kv_heads, bytes] in another format."""
        if replace(old, name=new.name) == new:  # int3nsep:128 is int3nsep
            return data
        values = old.decode(data, side.head_dim, side.side)
        limited = new if isinstance(new, TokenFormat) else side.type.open_format
        if not np.abs(values).max() <= limited.limit:
            raise self.refused(f"saved as {old.name}, beyond the range of {new.name}")
        squares = old.power(data, side.head_dim, side.side)
        weights = None if squares is None else np.sqrt(squares)
        return new.encode(values, side.side, weights)


@contextmanager
def open_snapshot(path: str | Path) -> Iterator[Snapshot]:
    """The saved cache at `path`.

    Raises InputError with one line if it cannot be read, is damaged, or of another version.
    """
    try:
        with Path(path).open("rb") as file:
            yield Snapshot(path, file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
