"""Keys of a weighted type are packed with the queries of their own page, however these came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import new_ops
from engine.kv.cache import CacheType, LayerCache, SideCache
from engine.kv.formats import BF16, kv_format
from engine.model.load import Model, open_checkpoint
from engine.ops import Array, Ops
from engine.session import Session

MODEL = Path(__file__).parents[1] / "fixtures" / "oracle" / "qwen3"
PROMPT = np.random.default_rng(0).integers(0, 96, 256).tolist()
OTHER = np.random.default_rng(1).integers(0, 96, 20).tolist()
SIZE = 64


def session(ops: Ops | None = None, ctk: str = "int2wfq:64") -> Session:
    return Session(Model(open_checkpoint(MODEL), ops or new_ops("cpu", 1)), ctk=ctk, ctv="bf16")


def keys(own: Session) -> list[SideCache]:
    return [layer.k for layer in own.cache.layers]


def assert_same_pages(one: Session, other: Session) -> None:
    for mine, theirs in zip(keys(one), keys(other), strict=True):
        for one_page, other_page in zip(mine.pages, theirs.pages, strict=True):
            assert one_page is not None and other_page is not None
            np.testing.assert_array_equal(one_page, other_page)


class Seen:
    """Keeps what a backend's `extend` is given, by layer."""

    def __init__(self, ops: Ops) -> None:
        self.keys: dict[int, list[np.ndarray]] = {}
        self.queries: dict[int, list[np.ndarray]] = {}
        self._ops, self._extend = ops, ops.extend
        ops.extend = self.extend

    def extend(self, layer: LayerCache, q: Array, k: Array, v: Array, *rest: Any) -> Array:
        self.keys.setdefault(layer.index, []).append(self._ops.to_host(k).copy())
        self.queries.setdefault(layer.index, []).append(self._ops.to_host(q).copy())
        return self._extend(layer, q, k, v, *rest)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_page_is_the_recipe_with_the_rms_of_its_queries(backend: str) -> None:
    ops = new_ops(backend, 1)
    seen, own, kind = Seen(ops), session(ops), kv_format("int2wfq:64")
    for start, stop in ((0, 5), (5, 70), (70, 256)):
        own.extend(PROMPT[start:stop])
    changed = 0
    for side, index in zip(keys(own), seen.keys, strict=True):
        k, q = np.concatenate(seen.keys[index]), np.concatenate(seen.queries[index])
        q = q.reshape(len(q), side.kv_heads, -1, side.head_dim).astype(np.float64)
        for page in range(4):
            cut = slice(page * SIZE, (page + 1) * SIZE)
            x = np.ascontiguousarray(k[cut].swapaxes(0, 1))
            held = BF16.decode(BF16.encode(x, "k"), side.head_dim, "k")
            weights = np.sqrt(np.square(q[cut]).mean(axis=(0, 2))).astype(np.float32)
            want = kind.encode(held, "k", weights)
            np.testing.assert_array_equal(side.pages[page], want)
            changed += int((want != kind.encode(held, "k")).any())
    assert changed > 0  # the queries do decide


def test_one_token_at_a_time_notes_the_queries_of_a_prompt() -> None:
    whole, single = session(), session()
    whole.extend(PROMPT[:110])
    for token in PROMPT[:110]:
        single.extend([token])
    for mine, theirs in zip(keys(whole), keys(single), strict=True):
        assert mine.queries is not None and theirs.queries is not None
        rows = 110 % SIZE
        # a prompt's products round their activations
        np.testing.assert_allclose(mine.queries.rows[:rows], theirs.queries.rows[:rows], 0.1, 1e-2)


@pytest.mark.parametrize("step", [1, 7])
def test_back_into_the_open_page_and_on_gives_the_same_bytes(step: int) -> None:
    straight, turned = session(), session()
    for own in (straight, turned):
        own.extend(PROMPT[:45])
    turned.extend(OTHER[:15])
    assert turned.rewind(PROMPT[:46]) == PROMPT[45:46]
    for own in (straight, turned):
        for start in range(45, 131, step):
            own.extend(PROMPT[start : start + step])
    assert_same_pages(straight, turned)


def test_values_and_unweighted_keys_note_nothing() -> None:
    for types in (("int3wf:64", "int3wfq:64"), ("bf16", "int3wfq:64")):
        own = Session(Model(open_checkpoint(MODEL), new_ops("cpu", 1)), ctk=types[0], ctv=types[1])
        own.extend(PROMPT[:40])
        sides = [side for layer in own.cache.layers for side in (layer.k, layer.v)]
        assert all(side.queries is None for side in sides)


@pytest.mark.parametrize("size", [1.0, 1e25])
@pytest.mark.parametrize("heads", [3, 9])
def test_backends_note_the_same_bytes(heads: int, size: float) -> None:
    rng = np.random.default_rng(heads)
    q = (rng.standard_normal((20, heads, 24)) * size).astype(np.float32)
    k, rows = rng.standard_normal((20, 3, 24)).astype(np.float32), []
    for backend in ("cpu", "reference"):
        ops, kind = new_ops(backend, 1), CacheType.of(kv_format("int3wfq:32"))
        layer = LayerCache((kind, kind), 3, 24, 64, None, 0)
        for cut in (slice(0, 7), slice(7, 20)):
            ops.append(layer, k[cut], k[cut])
            with np.errstate(over="ignore", invalid="ignore"):
                ops.to_host(ops.attend(q[cut], layer, 1.0, 0.0))
        assert layer.k.queries is not None
        rows.append(layer.k.queries.rows)
        assert np.isfinite(layer.k.queries.weights()).all()
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0][:20] != 1).all() and (rows[0][20:] == 1).all()
