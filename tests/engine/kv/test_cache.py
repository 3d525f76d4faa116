"""The cache's pages: their bytes, their addresses, their ends, and what forgetting leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from rows import gaussian

from engine.errors import InputError
from engine.kv.cache import CacheType, KVCache, LayerCache, SideCache
from engine.kv.formats import KV_FORMATS, kv_format
from engine.reference import ReferenceOps

OPS = ReferenceOps()
NAMES = [*KV_FORMATS, "int3nsep:32"]
HEADS, DIM = 2, 64


def layer_of(
    k: str, v: str | None = None, n_ctx: int = 2048, window: int | None = None, sink: int = 0
):
    types = CacheType.of(kv_format(k), sink), CacheType.of(kv_format(v or k), sink)
    return LayerCache(types, HEADS, DIM, n_ctx, window, 0)


def append(layer: LayerCache, x: np.ndarray) -> None:
    """Append keys x [T, heads, dim] and values -x as a decoder does."""
    for cut in layer.segments(len(x)):
        OPS.append(layer, x[cut], -x[cut])
        OPS.seal(layer)
    layer.evict(layer.n - len(x))


def tokens(n: int) -> np.ndarray:
    return gaussian(n, HEADS, DIM)


def allocated(root: object) -> int:
    """Bytes of all the distinct NumPy memory that is reachable from `root`."""
    buffers: dict[int, int] = {}
    seen: set[int] = set()
    pending = [root]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            # the memory that is held is the one the views come from
            owner = item
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            buffers[id(owner)] = owner.nbytes
        elif isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, dict):
            pending += item.values()
        elif hasattr(item, "__dict__"):
            pending += vars(item).values()
    return sum(buffers.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "sink"), [(1, 0), (100, 0), (128, 0), (129, 0), (2, 4), (500, 4)])
def test_reported_bytes_are_the_bytes_allocated(name: str, n: int, sink: int) -> None:
    layers = [layer_of(name, sink=sink), layer_of(name, "bf16", window=64, sink=sink)]
    cache = KVCache(layers, 2048)
    for layer in cache.layers:
        append(layer, tokens(n))
    sides = [side for layer in cache.layers for side in (layer.k, layer.v)]
    tables = sum(side.sink_table.nbytes for side in sides)
    # aligning a page costs up to a cache line
    blocks = sum(len(side.pages) + 1 + bool(sink) for side in sides)
    assert cache.nbytes <= allocated(cache) - tables <= cache.nbytes + 64 * blocks


@pytest.mark.parametrize("sink", [0, 8])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_follow_from_the_format(name: str, sink: int) -> None:
    layer = layer_of(name, sink=sink)
    append(layer, tokens(300 + sink))
    kind, queries = layer.k.type, 0
    if kind.tail is None:
        want = 3 * kind.format.page_nbytes(128, DIM)
    else:
        sealed = 300 // kind.page_tokens
        want = sealed * kind.format.page_nbytes(kind.page_tokens, DIM)
        want += kind.tail.page_nbytes(kind.page_tokens, DIM)
        queries = kind.format.weighted * kind.page_tokens * DIM * 4  # float32, for keys alone
    width = 4 if name == "f32" else 2
    assert layer.nbytes == HEADS * (2 * (want + sink * width * DIM) + queries)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_cache_takes_no_pages(name: str) -> None:
    assert layer_of(name, n_ctx=1 << 20).nbytes == 0


@pytest.mark.parametrize("n", [1, 127, 128, 129, 384])
@pytest.mark.parametrize("name", NAMES)
def test_addresses_are_those_of_the_pages(name: str, n: int) -> None:
    layer = layer_of(name, window=300)
    append(layer, tokens(n))
    for side in (layer.k, layer.v):
        for page, address in zip(side.pages, side.table, strict=False):
            assert address == (0 if page is None else page.ctypes.data)
        if n % side.type.page_tokens:
            index = n // side.type.page_tokens
            assert side.table[index] == side.open_page(index).ctypes.data
        assert all(address % 64 == 0 for address in side.table)


@pytest.mark.parametrize(("k", "v"), [("int3nsep:96", "int3nsep:64"), ("bf16", "int3nsep:32")])
def test_segments_never_cross_the_end_of_a_tail(k: str, v: str) -> None:
    layer = layer_of(k, v)
    for n in (1, 30, 33, 200, 5):
        start, cuts = layer.n, []
        for cut in layer.segments(n):
            for side in (layer.k, layer.v):
                size = side.type.page_tokens if side.type.tail else 1 << 30
                assert side.n // size == (side.n + cut.stop - cut.start - 1) // size
            cuts.append(cut)
            OPS.append(layer, tokens(n)[cut], tokens(n)[cut])
            OPS.seal(layer)
        assert [t for cut in cuts for t in range(cut.start, cut.stop)] == list(range(n))
        assert layer.n == start + n


@pytest.mark.parametrize("name", NAMES)
def test_cut_into_chunks_or_whole_the_bytes_are_the_same(name: str) -> None:
    whole, parts, x = layer_of(name), layer_of(name), tokens(300)
    append(whole, x)
    for start, stop in ((0, 1), (1, 100), (100, 128), (128, 131), (131, 290), (290, 300)):
        append(parts, x[start:stop])
    for a, b in ((whole.k, parts.k), (whole.v, parts.v)):
        for mine, other in zip(a.pages, b.pages, strict=True):
            assert mine is not None and other is not None
            np.testing.assert_array_equal(mine, other)
        np.testing.assert_array_equal(a.decode(0), b.decode(0))


@pytest.mark.parametrize("name", [name for name in NAMES if "nsep" in name])
def test_a_sealed_page_is_the_encoding_of_what_the_tail_held(name: str) -> None:
    layer, x = layer_of(name), tokens(128)
    append(layer, x)
    kind = layer.k.type
    assert kind.tail is not None
    exact = kind.tail.encode(np.ascontiguousarray(x.swapaxes(0, 1)), "k")
    held = kind.tail.decode(exact, DIM, "k").reshape(HEADS, -1, kind.page_tokens, DIM)
    for index, page in enumerate(layer.k.pages):
        np.testing.assert_array_equal(page, kind.format.encode(held[:, index], "k"))


@pytest.mark.parametrize("name", NAMES)
def test_sealed_pages_never_change(name: str) -> None:
    layer = layer_of(name)
    append(layer, tokens(256))
    before = [page.copy() for page in layer.k.pages[:2] if page is not None]
    append(layer, tokens(200))
    for old, new in zip(before, layer.k.pages, strict=False):
        np.testing.assert_array_equal(old, new)


@cache
def decoded_whole(name: str, n: int, sink: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of a layer that has just read n tokens."""
    layer = layer_of(name, sink=sink)
    append(layer, tokens(n))
    return layer.k.decode(0), layer.v.decode(0)


@pytest.mark.parametrize("sink", [0, 5])
@pytest.mark.parametrize("n", [0, 1, 5, 100, 128, 200, 256, 290, 300])
@pytest.mark.parametrize("name", NAMES)
def test_truncating_keeps_the_longest_prefix_that_is_still_there(
    name: str, n: int, sink: int
) -> None:
    x, held = tokens(300), KVCache([layer_of(name, sink=sink) for _ in range(2)], 2048)
    for layer in held.layers:
        append(layer, x)
    size = held.layers[0].k.type.page_tokens
    # in a sealed page the exact values are gone: back to its start
    page = held.layers[0].k.page_start
    exact = held.layers[0].k.type.tail is None or n < sink or n >= page(300)
    kept = held.truncate(n)
    assert kept == (n if exact else sink + (n - sink) // size * size)
    for layer in held.layers:
        assert layer.n == layer.k.n == layer.v.n == kept
        append(layer, x[kept:])
        keys, values = decoded_whole(name, 300, sink)
        np.testing.assert_array_equal(layer.k.decode(0), keys)
        np.testing.assert_array_equal(layer.v.decode(0), values)


@pytest.mark.parametrize("name", NAMES)
def test_sinks_stay_exact_and_outside_the_pages(name: str) -> None:
    x, with_sinks, without = tokens(300), layer_of(name, sink=4), layer_of(name)
    append(with_sinks, x)
    append(without, x[4:])
    for mine, other in ((with_sinks.k, without.k), (with_sinks.v, without.v)):
        np.testing.assert_array_equal(mine.decode(4), other.decode(0))
        np.testing.assert_array_equal(mine.decode(0)[:, 4:], other.decode(0))
    exact = x[:4].swapaxes(0, 1)
    np.testing.assert_allclose(with_sinks.k.decode(0)[:, :4], exact, rtol=2**-8)


def test_a_window_frees_the_sinks_that_it_has_left_behind() -> None:
    layer = layer_of("q8_0", window=40, sink=4)
    append(layer, tokens(255))
    assert layer.k.first_held() == 0 and layer.k.sink_table[0] == layer.k.sinks.ctypes.data
    append(layer, tokens(1))
    assert layer.k.first_held() == 4 and layer.k.sink_table[0] == 0


def test_truncating_falls_back_until_every_side_agrees() -> None:
    cache = KVCache([layer_of("int3nsep:96", "int3nsep:64")], 2048)
    append(cache.layers[0], tokens(300))
    # 200 is inside sealed pages: 192 is a boundary of both
    assert cache.truncate(200) == 192
    # 100 of keys falls back to 96, where values have no boundary: 64, and then nothing for keys
    assert cache.truncate(100) == 0


def test_a_window_that_has_lost_its_tokens_falls_back_to_nothing() -> None:
    cache = KVCache([layer_of("bf16"), layer_of("bf16", window=40)], 2048)
    for layer in cache.layers:
        append(layer, tokens(600))
    held = cache.layers[1].k.first_held()
    assert held > 0
    assert cache.truncate(590) == 590
    assert cache.truncate(held + 39) == held + 39  # the oldest visible token is still there
    assert cache.truncate(held + 10) == 0
    assert all(layer.n == 0 and layer.nbytes == 0 for layer in cache.layers)


@pytest.mark.parametrize("name", ["bf16", "q4_0", "int3nsep", "int3nsep:32"])
def test_a_windows_bytes_stay_bounded(name: str) -> None:
    layer, x = layer_of(name, window=100, n_ctx=2048), tokens(2000)
    most = 0
    for start in range(0, 2000, 7):
        append(layer, x[start : start + 7])
        most = max(most, layer.nbytes)
    kind = layer.k.type
    # the window, one page for rolling back, and a page at either end that is only in part inside
    pages = -(-100 // kind.page_tokens) + 3
    tail = 0 if kind.tail is None else kind.tail.page_nbytes(kind.page_tokens, DIM)
    bound = pages * kind.format.page_nbytes(kind.page_tokens, DIM) + tail
    assert most <= 2 * HEADS * bound
    assert layer.k.first_held() <= 2000 - 100
    evicted = layer.k.first_held() // kind.page_tokens
    assert evicted > 0 and not layer.k.table[:evicted].any()


def test_an_evicted_page_is_never_decoded() -> None:
    layer = layer_of("bf16", window=10)
    append(layer, tokens(600))
    with pytest.raises(AssertionError, match="evicted"):
        layer.k.decode(0)


@pytest.mark.parametrize(("held", "more"), [(0, 65), (60, 5), (64, 1)])
def test_a_full_context_is_refused(held: int, more: int) -> None:
    cache = KVCache([layer_of("bf16", n_ctx=64)], 64)
    append(cache.layers[0], tokens(held))
    cache.check_room(64 - held)
    with pytest.raises(InputError, match=f"{held} tokens cached and {more} more .* 64"):
        cache.check_room(more)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(method: str) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(SideCache, method, stop)

    return install


@pytest.mark.parametrize("method", ["open_pages", "seal", "_place"])
def test_an_interrupted_append_can_be_undone(
    method: str, interrupted: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, layer = tokens(200), layer_of("int3nsep:32", "q8_0")
    cache = KVCache([layer], 2048)
    append(layer, x[:120])
    interrupted(method)
    with pytest.raises(KeyboardInterrupt):
        append(layer, x[120:150])
    monkeypatch.undo()
    kept = cache.truncate(120)
    assert kept in (96, 120)
    append(layer, x[kept:])
    fresh = layer_of("int3nsep:32", "q8_0")
    append(fresh, x)
    np.testing.assert_array_equal(layer.k.decode(0), fresh.k.decode(0))
    np.testing.assert_array_equal(layer.v.decode(0), fresh.v.decode(0))


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("recent", "sink"), [(0, 0), (20, 0), (0, 5), (20, 5)])
@pytest.mark.parametrize("name", ["bf16", "q4_0", "int3nsep:32"])
def test_counting_a_token_leaves_out_nothing_that_is_due(
    name: str, recent: int, sink: int, window: int | None
) -> None:
    def new_cache() -> KVCache:
        kind = CacheType.of(kv_format(name), sink, recent=recent)
        return KVCache(
            [LayerCache((kind, kind), HEADS, DIM, 512, w, 0) for w in (None, window)], 512
        )

    def settle(cache: KVCache) -> None:
        cache.advance(1)
        for layer in cache.layers:
            if layer.full():
                layer.seal()

    quick, slow, counted = new_cache(), new_cache(), 0
    for _ in range(300):
        quick.open_pages(1)
        if quick.count_one():
            counted += 1
        else:
            settle(quick)
        for layer in slow.layers:
            layer.open_pages(1)
        settle(slow)
        for mine, other in zip(quick.layers, slow.layers, strict=True):
            for a, b in ((mine.k, other.k), (mine.v, other.v)):
                assert a.n == b.n
                assert [page is None for page in a.pages] == [page is None for page in b.pages]
                np.testing.assert_array_equal(a.sink_table != 0, b.sink_table != 0)
    assert counted > 200
