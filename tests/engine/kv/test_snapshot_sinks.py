"""Exact first and newest tokens are kept with a session, whatever else its pages are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_snapshot import TEXT, goes_on_alike, model, refusal, resigned

from engine.errors import InputError
from engine.kv.cache import CacheType
from engine.kv.formats import BF16, kv_format
from engine.session import Session


def session(name: str, ctk: str, ctv: str, sink: int = 4, recent: int = 0) -> Session:
    """Token formats in pages of 32, so that windows lose some."""
    k, v = (CacheType.of(kv_format(kind), sink, BF16, recent) for kind in (ctk, ctv))
    k, v = (t if t.format.page_tokens else replace(t, page_tokens=32) for t in (k, v))
    return Session(model(name), ctk=k, ctv=v)


# among the sinks, their end, in the open page, a full page, behind windows
@pytest.mark.parametrize("recent", [0, 40])
@pytest.mark.parametrize("n", [0, 2, 4, 5, 36, 70, 203])
@pytest.mark.parametrize(
    ("name", "ctk", "ctv"),
    [
        ("llama", "int3wfq:32", "int3wf:32"),
        ("qwen2", "q4_0+h+b", "int3nsep:32+h"),
        ("gemma3", "int3nsep:32", "q8_0"),
        ("mistral", "f32", "int3wf:32"),
    ],
)
def test_restored_with_sinks_is_as_if_one_had_never_left(
    name: str, ctk: str, ctv: str, n: int, recent: int, tmp_path: Path
) -> None:
    stayed = session(name, ctk, ctv, recent=recent)
    for start in range(0, n, 40):
        stayed.extend(TEXT[start : min(n, start + 40)])
    stayed.save(tmp_path / "s")
    restored = Session.restore(model(name), tmp_path / "s")
    assert restored.cache.layers[0].k.type == stayed.cache.layers[0].k.type
    lost = [layer.k.sinks_evicted for layer in stayed.cache.layers]
    assert [layer.k.sinks_evicted for layer in restored.cache.layers] == lost
    assert any(lost) or n < 203 or name in ("llama", "qwen2")
    goes_on_alike(restored, stayed)


def test_sinks_in_other_types_are_unpacked_and_packed_anew(tmp_path: Path) -> None:
    stayed = session("llama", "f32", "int8nsep:32")
    stayed.extend(TEXT[:100])
    stayed.save(tmp_path / "s")
    moved = Session.restore(model(), tmp_path / "s", ctv="int4nsep:32")
    for layer, other in zip(stayed.cache.layers, moved.cache.layers, strict=True):
        assert other.k.type.sink == other.v.type.sink == 4
        assert (layer.v.decode(0)[:, :4] == other.v.decode(0)[:, :4]).all()
        assert (layer.k.decode(0) == other.k.decode(0)).all()


@pytest.mark.parametrize(("before", "after"), [(0, 50), (50, 0), (20, 70)])
@pytest.mark.parametrize("ctk", ["q8_0", "int3wfq:32"])
def test_another_window_repacks_or_unpacks_pages(
    ctk: str, before: int, after: int, tmp_path: Path
) -> None:
    stayed = session("llama", ctk, "int8nsep:32", recent=before)
    stayed.extend(TEXT[:150])
    stayed.save(tmp_path / "s")
    k, v = (layer_type(stayed, side, after) for side in "kv")
    moved = Session.restore(model(), tmp_path / "s", ctk=k, ctv=v)
    for layer, other in zip(stayed.cache.layers, moved.cache.layers, strict=True):
        for side, own in ((layer.k, other.k), (layer.v, other.v)):
            assert len(own.pages) == (146 - after) // 32
            exact, held = side.decode(0), own.decode(0)
            if after > before:  # packed pages as they are, but for the rounding of bf16
                np.testing.assert_allclose(held, exact, rtol=2**-8)
            newest = slice(4 + 32 * max(len(own.pages), len(side.pages)), None)
            np.testing.assert_array_equal(held[:, newest], exact[:, newest])
    assert np.isfinite(moved.extend(TEXT[150:170])).all()


def test_a_window_that_needs_what_is_evicted_is_refused(tmp_path: Path) -> None:
    stayed = session("mistral", "q8_0", "q8_0", sink=0)
    stayed.extend(TEXT)
    layer = next(layer for layer in stayed.cache.layers if layer.window)
    assert layer.window is not None
    stayed.truncate(layer.k.first_held() + layer.window - 1)
    assert layer.k.first_held() and stayed.tokens
    stayed.save(tmp_path / "s")
    kind = layer_type(stayed, "k", 1000)
    with pytest.raises(InputError, match=r"pages are missing that .* exact newest tokens need"):
        Session.restore(model("mistral"), tmp_path / "s", ctk=kind, ctv=kind)


def layer_type(held: Session, side: str, recent: int) -> CacheType:
    return replace(getattr(held.cache.layers[0], side).type, recent=recent, tail=BF16)


def test_named_types_take_sinks_and_window_over(tmp_path: Path) -> None:
    stayed = session("llama", "int4nsep:32", "int8nsep:32", recent=40)
    stayed.extend(TEXT[:100])
    stayed.save(tmp_path / "s")
    kind = Session.restore(model(), tmp_path / "s", ctk="int3wf:32").cache.layers[0].k.type
    assert (kind.name, kind.sink, kind.recent, kind.tail) == ("int3wf:32", 4, 40, BF16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "s"
    own = session("llama", "q8_0", "q8_0")
    own.extend(TEXT[:70])
    own.save(path)
    return path


@pytest.mark.parametrize("sink", [0, 3, 5])
def test_another_number_of_sinks_is_refused(sink: int, saved: Path) -> None:
    said = refusal(lambda: Session.restore(model(), saved, sink=sink))
    assert "saved with 4 exact first tokens, behind which its pages begin" in said
    assert f"cannot go on with {sink}" in said
    kind = replace(CacheType.of(kv_format("q8_0"), sink), page_tokens=32)
    said = refusal(lambda: Session.restore(model(), saved, ctk=kind, ctv=kind))
    assert f"cannot go on with {sink}" in said
    assert Session.restore(model(), saved, sink=4).tokens == TEXT[:70]


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    own = session("llama", "q8_0", "int3nsep:32", sink=0)
    own.extend(TEXT[:70])
    own.save(tmp_path / "s")

    def strip(header: dict) -> None:
        for layer in header["layers"]:
            for side in "kv":
                for name in ("sink", "sinks_evicted", "recent"):
                    del layer[side][name]

    old = resigned(tmp_path / "s", tmp_path / "old", strip, version=1)
    goes_on_alike(Session.restore(model(), old), own)


@pytest.mark.parametrize(
    "change",
    [
        lambda k: k.update(sink=-1),
        lambda k: k.update(sink=33),
        lambda k: k.update(sink=3),
        lambda k: k.update(sink=True),
        lambda k: k.update(sinks_evicted=True),
        lambda k: k.update(sinks_evicted=0),
        lambda k: k.update(evicted=1),
        lambda k: k.update(recent=40),
        lambda k: k.update(recent=-1),
    ],
)
def test_a_header_that_lies_about_sinks_is_refused(
    change: Callable[[dict], object], saved: Path, tmp_path: Path
) -> None:
    copy = resigned(saved, tmp_path / "s", lambda h: change(h["layers"][0]["k"]))
    assert refusal(lambda: Session.restore(model(), copy))
