"""Whatever was in a page's memory before, nothing of it is there or has been read afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu import CpuOps
from engine.errors import InputError
from engine.kv import side_cache, tail
from engine.kv.cache import CacheType, KVCache, LayerCache
from engine.kv.format import KVFormat
from engine.kv.formats import ALL_KV_FORMATS
from engine.ops import Ops
from engine.reference import ReferenceOps

CPU, REFERENCE = CpuOps(), ReferenceOps()
HEADS, KV_HEADS, CONTEXT = 4, 2, 512
OLD = (0x00, 0x7F, 0xFF)  # as floats: zeros, huge or NaN


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[what is in the bytes of a page that is not made zeros]"""
    value, make = [0], tail.aligned

    def filled(shape: tuple[int, int], zeroed: bool = True) -> np.ndarray:
        page = make(shape, zeroed)
        if not zeroed:
            page[:] = value[0]
        return page

    for module in (side_cache, tail):
        monkeypatch.setattr(module, "aligned", filled)
    return value


def extended(ops: Ops, cache: KVCache, dim: int, parts: tuple[int, ...]) -> list[np.ndarray]:
    """What the attention to every part is."""
    (layer,), rng, found = cache.layers, np.random.default_rng(dim), []
    for tokens in parts:
        q, k, v = (
            ops.asarray(rng.standard_normal((tokens, heads, dim)).astype(np.float32))
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        found.append(ops.to_host(ops.extend(layer, q, k, v, dim**-0.5, 0.0)).copy())
        cache.advance(tokens)
        if layer.full():
            ops.seal(layer)
            ops.finish()
    return found


def new_cache(stored: KVFormat, dim: int, recent: int) -> KVCache:
    kind = CacheType.of(stored, recent=recent)
    return KVCache([LayerCache((kind, kind), KV_HEADS, dim, CONTEXT, None, 0)], CONTEXT)


def assert_same(cache: KVCache, other: KVCache) -> None:
    """All bytes of packed and of open pages."""
    (layer,), (its,) = cache.layers, other.layers
    for mine, theirs in ((layer.k, its.k), (layer.v, its.v)):
        assert len(mine.pages) == len(theirs.pages)
        for page, same in zip(mine.pages, theirs.pages, strict=True):
            np.testing.assert_array_equal(page, same)
        np.testing.assert_array_equal(mine.decode(0), theirs.decode(0))


@pytest.mark.parametrize("recent", [0, 30])
@pytest.mark.parametrize("stored", ALL_KV_FORMATS.values(), ids=list(ALL_KV_FORMATS))
def test_a_page_of_garbage_and_one_of_zeros_become_the_same(
    stored: KVFormat, recent: int, old: list[int]
) -> None:
    for ops, dim in ((CPU, 64), (CPU, 72), (REFERENCE, 72)):
        want = None
        for old[0] in OLD[:: 1 if ops is CPU else 2]:
            cache = new_cache(stored, dim, recent)
            found = extended(ops, cache, dim, (40, 300, 1, 130))
            if want is None:
                want = found, cache
            np.testing.assert_equal(found, want[0])
            assert_same(cache, want[1])


@pytest.mark.parametrize("recent", [0, 30])
@pytest.mark.parametrize("name", ["bf16", "q8_0", "int3nsep"])
def test_a_refused_chunk_leaves_no_page(name: str, recent: int, old: list[int]) -> None:
    old[0], dim = 0xFF, 64
    cache, fresh = (new_cache(ALL_KV_FORMATS[name], dim, recent) for _ in range(2))
    extended(CPU, cache, dim, (40,))
    bad = np.ones((300, KV_HEADS, dim), np.float32)
    bad[200, 0, 3] = np.nan
    CPU.append(cache.layers[0], CPU.asarray(bad), CPU.asarray(bad))
    with pytest.raises(InputError, match="position 240"):
        CPU.finish()
    kept = cache.truncate(40)
    extended(CPU, fresh, dim, (40,) if kept else ())
    found, want = (extended(CPU, held, dim, (300, 1)) for held in (cache, fresh))
    np.testing.assert_equal(found, want)
    assert_same(cache, fresh)
