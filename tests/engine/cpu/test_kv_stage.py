"""A chunk taken at once is the chunk taken cut by cut."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu import CpuOps
from engine.kv.cache import CacheType, LayerCache
from engine.kv.formats import kv_format

HEADS, KV_HEADS, DIM, CONTEXT = 6, 2, 48, 512
CHUNKS = (7, 130, 1, 64, 40, 200)
CPU = CpuOps()


def taken(k: str, v: str, whole: bool, window: int | None, sink: int, recent: int):
    """What every chunk attends to, and the layer."""
    types = [CacheType.of(kv_format(name), sink, recent=recent) for name in (k, v)]
    layer = LayerCache((types[0], types[1]), KV_HEADS, DIM, CONTEXT, window, 0)
    rng, found = np.random.default_rng(0), []
    for tokens in CHUNKS:
        q, keys, values = (
            CPU.asarray(rng.standard_normal((tokens, heads, DIM)).astype(np.float32))
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        extend = CPU.extend if whole else super(CpuOps, CPU).extend
        found.append(CPU.to_host(extend(layer, q, keys, values, DIM**-0.5, 0.0)).copy())
        layer.count.settle(layer.n)
        if layer.full():
            CPU.seal(layer)
            CPU.finish()
    return found, layer


@pytest.mark.parametrize(("sink", "recent", "window"), [(0, 0, None), (5, 0, 60), (3, 50, None)])
@pytest.mark.parametrize(
    ("k", "v"),
    [
        ("int3nsep:32", "int3nsep:32"),
        ("int3wfq:32", "int3wf:96"),
        ("q8_0", "kivi2:64"),
        ("int3wfq:64", "bf16"),
        ("q4_0", "q4_0"),
    ],
)
def test_a_chunk_at_once_is_the_chunk_cut_by_cut(
    k: str, v: str, sink: int, recent: int, window: int | None
) -> None:
    (mine, layer), (theirs, other) = (
        taken(k, v, whole, window, sink, recent) for whole in (True, False)
    )
    alike = []
    for got, want in zip(mine, theirs, strict=True):
        # the few queries of a short cut are multiplied as float32 when it comes alone; a page in
        # the wrong form makes a difference of 0.2 to 1
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
        alike.extend((got == want).all(axis=(1, 2)))
    assert np.mean(alike) > 0.85, "all other cuts are alike bit for bit"
    assert layer.nbytes == other.nbytes
    for side, its in ((layer.k, other.k), (layer.v, other.v)):
        assert len(side.pages) == len(its.pages)
        for page, same in zip(side.pages, its.pages, strict=True):
            np.testing.assert_array_equal(page, same)
        np.testing.assert_array_equal(side.decode(0), its.decode(0))
