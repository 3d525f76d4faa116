"""The exact window: the newest tokens as they came, the others as their type packs them."""

from __future__ import annotations

import numpy as np
import pytest
from rows import gaussian
from test_cache import DIM, HEADS, OPS, append

from engine.cpu import CpuOps
from engine.errors import InputError
from engine.kv.cache import CacheType, KVCache, LayerCache
from engine.kv.formats import kv_format
from engine.kv.formats.floats import BF16, F32
from engine.ops import Ops

NAMES = ["q4_0", "q8_0", "hqq2:64", "int3nsep:32", "int3wfq:64", "kivi2", "f16"]
SPANS = [(1, 0), (50, 0), (64, 4), (128, 0), (200, 3)]


def layer_of(name: str, recent: int, sink: int = 0, window: int | None = None) -> LayerCache:
    kind = CacheType.of(kv_format(name), sink, BF16, recent)
    return LayerCache((kind, kind), HEADS, DIM, 2048, window, 0)


def tokens(n: int) -> np.ndarray:
    return gaussian(n, HEADS, DIM)


@pytest.mark.parametrize(("recent", "sink"), SPANS)
@pytest.mark.parametrize("name", NAMES)
def test_the_newest_tokens_are_exact_and_no_page_more_than_it_takes(
    name: str, recent: int, sink: int
) -> None:
    layer, x = layer_of(name, recent, sink), tokens(700)
    stored = CacheType.of(kv_format(name), sink)
    exact = BF16.decode(BF16.encode(np.ascontiguousarray(x.swapaxes(0, 1)), "k"), DIM, "k")
    for n in (1, recent, recent + 1, 127, 300, 511, 700):
        append(layer, x[layer.n : n])
        size, packed = layer.k.type.page_tokens, len(layer.k.pages)
        held = layer.k.decode(0)[:, sink:n]
        if stored.tail is None and layer.k.type.tail is None:
            assert name == "f16"  # exact itself
            continue
        want = exact[:, sink:n]
        assert packed * size <= max(0, n - sink - recent) < (packed + 1) * size
        np.testing.assert_array_equal(held[:, packed * size :], want[:, packed * size :])
        for i in range(packed):
            part = want[:, i * size : (i + 1) * size]
            page = layer.k.type.format.encode(part, "k", _weights(layer, name))
            np.testing.assert_array_equal(layer.k.pages[i], page)


def _weights(layer: LayerCache, name: str) -> np.ndarray | None:
    # nobody has attended: every query counts alike
    return np.ones((HEADS, DIM), np.float32) if "wfq" in name else None


@pytest.mark.parametrize("backend", [CpuOps(2), OPS], ids=["cpu", "reference"])
@pytest.mark.parametrize("tail", [BF16, F32], ids=["bf16", "f32"])
@pytest.mark.parametrize("name", ["q4_0", "q6_0", "iq4_nl", "hqq4:32", "int4row-asym"])
@pytest.mark.parametrize("dim", [64, 80])
def test_a_token_page_is_packed_as_the_format_itself_does_it(
    name: str, tail, backend: Ops, dim: int
) -> None:
    kind = CacheType.of(kv_format(name), 0, tail, 32)
    layer, x = LayerCache((kind, kind), HEADS, dim, 512, None, 0), gaussian(256, HEADS, dim)
    for cut in layer.segments(len(x)):
        backend.append(layer, backend.asarray(x[cut]), backend.asarray(-x[cut]))
        backend.seal(layer)
    backend.finish()
    held = tail.decode(tail.encode(x[:128].swapaxes(0, 1).copy(), "k"), dim, "k")
    np.testing.assert_array_equal(layer.k.pages[0], kind.format.encode(held, "k"))
    np.testing.assert_array_equal(layer.v.pages[0], kind.format.encode(-held, "v"))


@pytest.mark.parametrize(("recent", "sink"), SPANS)
@pytest.mark.parametrize("name", ["q4_0", "int3nsep:32", "int3wfq:64"])
def test_going_back_keeps_what_is_still_exact_and_else_nothing(
    name: str, recent: int, sink: int
) -> None:
    x = tokens(400)
    for n in (0, sink, sink + 1, 100, 300, 380, 395, 399, 400):
        cache = KVCache([layer_of(name, recent, sink)], 2048)
        (layer,) = cache.layers
        append(layer, x)
        kept = cache.truncate(n)
        assert kept in (n, sink)
        kind = layer.k.type
        packed = (400 - sink - recent) // kind.page_tokens
        if n >= sink + packed * kind.page_tokens + recent:  # no page has to be opened again
            assert kept == n
        append(layer, x[kept:])
        fresh = layer_of(name, recent, sink)
        append(fresh, x)
        for mine, other in ((layer.k, fresh.k), (layer.v, fresh.v)):
            np.testing.assert_array_equal(mine.decode(0), other.decode(0))


@pytest.mark.parametrize("name", ["q8_0", "int3nsep:32"])
def test_a_window_within_the_exact_tokens_frees_packed_pages(name: str) -> None:
    layer = layer_of(name, 64, window=64)
    kind = layer.k.type
    for _ in range(129):
        append(layer, tokens(7))
    held = [page for page in layer.k.pages if page is not None]
    assert len(held) <= 2 + 128 // kind.page_tokens < len(layer.k.pages) - 2
    assert kind.within(10).recent == 10 and kind.within(100).recent == 64


def test_an_exact_window_needs_a_tail_and_no_negative_length() -> None:
    with pytest.raises(InputError, match="-1 exact newest tokens"):
        CacheType.of(kv_format("int3nsep"), recent=-1)
    with pytest.raises(InputError, match="5 exact newest tokens"):
        CacheType(kv_format("q8_0"), 128, None, recent=5)
