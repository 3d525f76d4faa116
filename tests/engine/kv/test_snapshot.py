"""A session that was saved and restored goes on as if it had never left; what does not fit is
refused by name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import new_ops
from engine.cpu import CpuOps
from engine.errors import InputError
from engine.kv import snapshot
from engine.kv.cache import CacheType
from engine.kv.formats import ALL_KV_FORMATS, F32, KV_FORMATS, kv_format
from engine.model.load import Model, open_checkpoint
from engine.session import Session

ORACLES = Path(__file__).parents[2] / "fixtures" / "oracle"
TEXT = np.random.default_rng(0).integers(0, 96, 240).tolist()
# in the first page, to be packed or not; its last token; after windows have lost pages
LENGTHS = [5, 100, 128, 203]


@cache
def model(name: str = "llama", backend: str = "cpu") -> Model:
    threads = 1 if backend == "cpu" else None
    return Model(open_checkpoint(ORACLES / name), new_ops(backend, threads))


def session(name: str = "llama", kind: str | CacheType = "q8_0", **options: Any) -> Session:
    return Session(model(name), ctk=kind, ctv=options.pop("ctv", kind), **options)


def goes_on_alike(one: Session, other: Session) -> None:
    """Both continue by a chunk and by single tokens, bit for bit the same."""
    assert one.tokens == other.tokens and one.cache.n == other.cache.n
    n = len(one.tokens)
    for part in (TEXT[n : n + 1], TEXT[n + 1 : n + 30], TEXT[n + 30 : n + 31], TEXT[n + 31 :][:5]):
        np.testing.assert_array_equal(one.extend(part), other.extend(part))
    assert one.cache.nbytes == other.cache.nbytes


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize("kind", [*KV_FORMATS, "int3nsep:32", "int4wf:64"])
def test_restored_is_as_if_one_had_never_left(kind: str, name: str, tmp_path: Path) -> None:
    for n in LENGTHS:
        stayed = session(name, kind)
        stayed.extend(TEXT[:n])
        stayed.save(tmp_path / "s")
        goes_on_alike(Session.restore(model(name), tmp_path / "s"), stayed)


@pytest.mark.parametrize("kind", sorted(set(ALL_KV_FORMATS) - set(KV_FORMATS)))
def test_every_type_of_the_grid_is_kept(kind: str, tmp_path: Path) -> None:
    stayed = session(kind=kind)
    stayed.extend(TEXT[:110])
    stayed.save(tmp_path / "s")
    goes_on_alike(Session.restore(model(), tmp_path / "s"), stayed)


def test_mixed_types_long_pages_and_tails_are_kept(tmp_path: Path) -> None:
    long_tail = CacheType(kv_format("int3nsep:64"), 64, F32)
    for ctk, ctv in (("int3nsep:32", "q4_0"), ("f16", long_tail), (long_tail, "int2wf")):
        stayed = session("qwen3", ctk, ctv=ctv, n_ctx=250)
        for start in range(0, 200, 67):
            stayed.extend(TEXT[start : start + 67])
        stayed.save(tmp_path / "s")
        restored = Session.restore(model("qwen3"), tmp_path / "s")
        assert restored.n_ctx == 250
        goes_on_alike(restored, stayed)


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
@pytest.mark.parametrize("kind", ["q8_0", "int3nsep:32"])
def test_pages_behind_a_window_stay_gone(kind: str, name: str, tmp_path: Path) -> None:
    short = replace(CacheType.of(kv_format(kind)), page_tokens=32)
    stayed = session(name, short)
    stayed.extend(TEXT[:203])
    assert any(layer.k.first_held() for layer in stayed.cache.layers)
    stayed.save(tmp_path / "s")
    restored = Session.restore(model(name), tmp_path / "s")
    assert restored.cache.nbytes == stayed.cache.nbytes
    goes_on_alike(restored, stayed)


def test_a_session_that_went_back_or_is_empty_is_kept(tmp_path: Path) -> None:
    stayed = session("gemma3", "int3nsep:32")
    stayed.save(tmp_path / "s")
    goes_on_alike(Session.restore(model("gemma3"), tmp_path / "s"), stayed)
    stayed.truncate(stayed.cache.n - 3)
    stayed.save(tmp_path / "s")
    goes_on_alike(Session.restore(model("gemma3"), tmp_path / "s"), stayed)


def test_saving_again_gives_the_same_bytes_and_forgotten_tokens_are_not_in_them(
    tmp_path: Path,
) -> None:
    stayed, short = session(), session()
    stayed.extend(TEXT[:200])
    stayed.truncate(70)
    short.extend(TEXT[:70])
    for name, own in (("a", stayed), ("b", short)):
        own.save(tmp_path / name)
    Session.restore(model(), tmp_path / "a").save(tmp_path / "c")
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "c").read_bytes()
    assert len(first) == len((tmp_path / "b").read_bytes())


def test_pages_saved_on_one_backend_are_those_of_the_other(tmp_path: Path) -> None:
    stayed = session(kind="int3nsep:32")
    stayed.extend(TEXT[:100])
    stayed.save(tmp_path / "s")
    moved = Session.restore(model("llama", "reference"), tmp_path / "s")
    for here, there in zip(stayed.cache.layers, moved.cache.layers, strict=True):
        for mine, other in ((here.k, there.k), (here.v, there.v)):
            np.testing.assert_array_equal(mine.decode(0), other.decode(0))
    want, got = stayed.extend(TEXT[100:101]), moved.extend(TEXT[100:101])
    assert np.abs(want - got).max() < 5e-3 * np.abs(want).max()


def test_the_number_of_bytes_is_that_of_the_tokens(tmp_path: Path) -> None:
    stayed = session(kind="q8_0")
    stayed.extend(TEXT[:130])
    stayed.save(tmp_path / "s")
    sides = [side for layer in stayed.cache.layers for side in (layer.k, layer.v)]
    pages = sum(s.kv_heads * 130 * KV_FORMATS["q8_0"].page_nbytes(1, s.head_dim) for s in sides)
    assert pages < (tmp_path / "s").stat().st_size < pages + 4096


def test_notes_come_back(tmp_path: Path) -> None:
    stayed = session()
    stayed.extend(TEXT[:5])
    stayed.notes["messages"] = [{"role": "user", "content": "n\u00e9 \U0001f600"}]
    stayed.save(tmp_path / "s")
    assert Session.restore(model(), tmp_path / "s").notes == stayed.notes


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "s"
    own = session(kind="int3nsep:32")
    own.extend(TEXT[:70])
    own.save(path)
    return path


def test_every_cut_is_noticed(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for n in [0, 1, 8, 15, 16, 100, *range(200, len(whole), 997), len(whole) - 1]:
        (tmp_path / "s").write_bytes(whole[:n])
        assert f"s: cut off: {n} bytes" in refusal(lambda: Session.restore(model(), tmp_path / "s"))
    (tmp_path / "s").write_bytes(whole + b"\0")
    assert "damaged: " in refusal(lambda: Session.restore(model(), tmp_path / "s"))


def test_every_changed_bit_is_noticed(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for at in [0, 7, 8, 12, 15, 16, 40, *range(100, len(whole), 997), len(whole) - 1]:
        data = bytearray(whole)
        data[at] ^= 4
        (tmp_path / "s").write_bytes(data)
        message = refusal(lambda: Session.restore(model(), tmp_path / "s"))
        assert any(word in message for word in ("damaged", "not a saved", "version", "cut off"))


def resigned(saved: Path, path: Path, change: Callable[[dict], object], version: int = 2) -> Path:
    """A copy with another header, its checksums right."""
    data = saved.read_bytes()
    size = int.from_bytes(data[12:16], "little")
    header = json.loads(data[16 : 16 + size])
    change(header)
    text = json.dumps(header).encode()
    start = b"minikvkv" + version.to_bytes(4, "little") + len(text).to_bytes(4, "little") + text
    start += hashlib.sha256(start).digest()
    start += data[16 + size + 32 : -32]
    path.write_bytes(start + hashlib.sha256(start).digest())
    return path


def test_a_copy_with_the_same_header_is_good(saved: Path, tmp_path: Path) -> None:
    copy = resigned(saved, tmp_path / "s", lambda _: None)
    assert Session.restore(model(), copy).tokens == TEXT[:70]


def test_another_version_is_refused(saved: Path, tmp_path: Path) -> None:
    copy = resigned(saved, tmp_path / "s", lambda _: None, version=3)
    assert "version 3; this minikv reads 1 to 2" in refusal(lambda: Session.restore(model(), copy))


def test_another_layout_of_a_type_is_refused(saved: Path, tmp_path: Path) -> None:
    copy = resigned(saved, tmp_path / "s", lambda h: h["layers"][1]["v"].update(layout=9))
    message = refusal(lambda: Session.restore(model(), copy))
    assert "int3nsep:32 is saved in layout 9; this minikv reads 1" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("n"),
        lambda h: h.pop("layers"),
        lambda h: h.update(layers=[]),
        lambda h: h.update(layers=h["layers"][:1]),
        lambda h: h.update(n=-1),
        lambda h: h.update(n=71),
        lambda h: h.update(n=1 << 60),
        lambda h: h.update(n_ctx=1 << 60),
        lambda h: h.update(about=[]),
        lambda h: h["about"].update(tokens=[96] * 70),
        lambda h: h["about"].update(tokens=["a"] * 70),
        lambda h: h["about"].update(notes=None),
        lambda h: h["about"].update(model=None),
        lambda h: h["layers"][0].update(kv_heads=3),
        lambda h: h["layers"][0].update(window=16),
        lambda h: h["layers"][0]["k"].update(type=3),
        lambda h: h["layers"][0]["k"].update(type="q9"),
        lambda h: h["layers"][0]["k"].update(tail=None),
        lambda h: h["layers"][0]["k"].update(tail="int3nsep"),
        lambda h: h["layers"][0]["k"].update(page_tokens=0),
        lambda h: h["layers"][0]["k"].update(page_tokens=64),
        lambda h: h["layers"][0]["k"].update(evicted=1),
        lambda h: h["layers"][0]["k"].update(evicted=-1),
    ],
)
def test_a_header_that_lies_is_refused(
    change: Callable[[dict], object], saved: Path, tmp_path: Path
) -> None:
    copy = resigned(saved, tmp_path / "s", change)
    assert refusal(lambda: Session.restore(model(), copy))


def test_another_model_is_refused_by_what_differs(saved: Path) -> None:
    assert "its " in refusal(lambda: Session.restore(model("qwen2"), saved))
    own = open_checkpoint(ORACLES / "llama")
    tensor = own.tensors["blk.1.attn_k.weight"]
    data = tensor.data.copy()
    data[0, 0] ^= 1
    tuned = replace(own, tensors={**own.tensors, tensor.name: replace(tensor, data=data)})
    message = refusal(lambda: Session.restore(Model(tuned, CpuOps(1)), saved))
    assert "saved with another model: its fingerprint is " in message


def test_a_context_too_small_is_refused_and_another_one_is_taken(saved: Path) -> None:
    message = refusal(lambda: Session.restore(model(), saved, n_ctx=69))
    assert "70 tokens, more than the context of 69" in message
    assert Session.restore(model(), saved, n_ctx=70).n_ctx == 70


def test_what_is_not_a_session_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"GGUF" + bytes(1000))
    assert "not a saved session" in refusal(lambda: Session.restore(model(), tmp_path / "s"))
    assert "No such file" in refusal(lambda: Session.restore(model(), tmp_path / "none"))
    assert "directory" in refusal(lambda: Session.restore(model(), tmp_path))


CONVERSIONS = [
    ("f32", "q8_0"), ("q8_0", "q4_0"), ("f32", "int3nsep"), ("int8nsep", "int4nsep"),
    ("int4nsep", "bf16"), ("int4wf", "int3nsep-sym"), ("q8_0", "int3wf"),
]  # fmt: skip


@pytest.mark.parametrize(("have", "want"), CONVERSIONS)
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_pages_in_another_type_are_unpacked_and_packed_anew(
    have: str, want: str, name: str, tmp_path: Path
) -> None:
    stayed = session(name, have)
    stayed.extend(TEXT[:203])
    stayed.save(tmp_path / "s")
    moved = Session.restore(model(name), tmp_path / "s", ctk=want, ctv=want)
    for here, there in zip(stayed.cache.layers, moved.cache.layers, strict=True):
        for old, new in ((here.k, there.k), (here.v, there.v)):
            assert new.type == CacheType.of(kv_format(want))
            assert new.first_held() == old.first_held()
            first = old.first_held()
            values, size = old.decode(first), old.type.page_tokens
            for start in range(0, values.shape[1], size):
                x = values[:, start : start + size]
                stored = new.type.format if x.shape[1] == size else new.type.open_format
                expected = stored.decode(stored.encode(x, new.side), new.head_dim, new.side)
                got = new.decode(first)[:, start : start + size]
                np.testing.assert_array_equal(got, expected)
    assert np.isfinite(moved.extend(TEXT[203:230])).all()


def test_the_same_bytes_under_another_name_are_taken_as_they_are(tmp_path: Path) -> None:
    stayed = session(kind="int3nsep")
    stayed.extend(TEXT[:203])
    stayed.save(tmp_path / "s")
    goes_on_alike(Session.restore(model(), tmp_path / "s", ctk="int3nsep:128"), stayed)


def test_pages_of_another_length_are_refused(saved: Path) -> None:
    message = refusal(lambda: Session.restore(model(), saved, ctk="q8_0"))
    assert "int3nsep:32 in pages of 32 tokens; q8_0 has pages of 128" in message


def test_values_beyond_the_range_of_the_new_type_are_refused(tmp_path: Path) -> None:
    stayed = session(kind="f32")
    stayed.extend(TEXT[:5])
    page = stayed.cache.layers[1].v.pages[0]
    assert page is not None
    page.view(np.float32)[0, 3] = 1e6
    stayed.save(tmp_path / "s")
    message = refusal(lambda: Session.restore(model(), tmp_path / "s", ctv="f16"))
    assert "f32, beyond the range of f16" in message


class Stopping:
    """A file on which one write fails."""

    def __init__(self, file: Any, error: BaseException) -> None:
        self.file, self.error, self.writes = file, error, 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        if self.writes == 4:
            raise self.error
        self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interruption_leaves_the_old_file(
    error: BaseException, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    path.write_bytes(saved.read_bytes())
    own, real = Session.restore(model(), path), snapshot.tempfile.NamedTemporaryFile
    own.extend(TEXT[70:80])

    class Opened:
        def __init__(self, **options: Any) -> None:
            self.inner = real(**options)

        def __enter__(self) -> Stopping:
            return Stopping(self.inner.__enter__(), error)

        def __exit__(self, *args: object) -> None:
            self.inner.__exit__(*args)

    monkeypatch.setattr(snapshot.tempfile, "NamedTemporaryFile", Opened)
    with pytest.raises((InputError, KeyboardInterrupt)) as caught:
        own.save(path)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: not saved: No space left"
    assert path.read_bytes() == saved.read_bytes()
    assert os.listdir(tmp_path) == ["s"]
    assert own.extend(TEXT[80:81]).shape == (96,)


def test_a_link_stays_one_and_a_folder_is_not_replaced(saved: Path, tmp_path: Path) -> None:
    own = Session.restore(model(), saved)
    (tmp_path / "link").symlink_to(tmp_path / "s")
    own.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "s").is_file()
    assert "not saved: " in refusal(lambda: own.save(tmp_path))
    assert "not saved: No such file" in refusal(lambda: own.save(tmp_path / "none" / "s"))
