"""Attention over packed pages equals dequantizing them and attending in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from bench.op_cases import GROUPS, HEAD_DIMS, Attention
from engine.cpu import CpuOps
from engine.kv.cache import LayerCache
from engine.kv.formats import KV_FORMATS
from engine.reference import ReferenceOps

CPU = CpuOps()
FORMATS = list(KV_FORMATS)
TOLERANCE = 1e-3  # of the output's largest magnitude


def attend(
    ops: CpuOps, q: np.ndarray, layer: LayerCache, scale: float = 0.125, softcap: float = 0.0
) -> np.ndarray:
    return ops.to_host(ops.attend(ops.asarray(q), layer, scale, softcap))


def attend64(q: np.ndarray, layer: LayerCache, scale: float, softcap: float) -> np.ndarray:
    """Causal attention in float64, one query head at a time, over the decoded pages."""
    first = max(layer.k.first_held(), layer.v.first_held()) if layer.window else 0
    k, v = (side.decode(side.page_start(first)).astype(np.float64) for side in (layer.k, layer.v))
    held = layer.n - first
    k, v = k[:, -held:], v[:, -held:]
    group, out = q.shape[1] // k.shape[0], np.empty(q.shape)
    for t in range(q.shape[0]):
        position = layer.n - q.shape[0] + t
        oldest = 0 if layer.window is None else max(0, position - layer.window + 1)
        seen = slice(oldest - first, position + 1 - first)
        for h in range(q.shape[1]):
            scores = k[h // group, seen] @ q[t, h].astype(np.float64) * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ v[h // group, seen] / weights.sum()
    return out


def check(case: Attention, sharpness: float = 1.0) -> None:
    layer, q = case.layer(CPU), case.inputs()[0] * np.float32(sharpness)
    got = attend(CPU, q, layer, case.dim**-0.5, case.softcap)
    want = attend64(q, layer, case.dim**-0.5, case.softcap)
    error = np.abs(got - want).max()
    assert error <= TOLERANCE * np.abs(want).max(), f"{case.name}: {error}"


@pytest.mark.parametrize("v", FORMATS)
@pytest.mark.parametrize("k", FORMATS)
def test_every_pair_of_formats(k: str, v: str) -> None:
    for tokens in (1, 6):
        check(Attention(k, v, cached=150, tokens=tokens))


@pytest.mark.parametrize("name", FORMATS)
def test_every_head_dim(name: str) -> None:
    for dim in HEAD_DIMS:
        check(Attention(name, name, dim=dim, cached=131))


@pytest.mark.parametrize("name", FORMATS)
def test_every_group_size(name: str) -> None:
    for group in GROUPS:
        check(Attention(name, name, heads=2 * group, dim=32, cached=140))
        check(Attention(name, name, heads=group, kv_heads=1, dim=32, cached=140, tokens=3))


@pytest.mark.parametrize("cached", [1, 31, 127, 128, 129, 255, 256, 257, 600])
def test_every_length_around_page_boundaries(cached: int) -> None:
    for name in FORMATS:
        check(Attention(name, name, cached=cached))


@pytest.mark.parametrize("name", ["int3nsep", "q8_0", "bf16"])
def test_a_long_context(name: str) -> None:
    check(Attention(name, name, heads=8, dim=32, cached=4096))
    check(Attention(name, name, heads=8, dim=32, cached=4099, window=1500))


@pytest.mark.parametrize("cached", [129, 1024, 1537, 1600, 2700])
def test_every_cut_of_a_single_query(cached: int) -> None:
    """Parts are equal to within a page, as many as make an even number of items."""
    for dim, group, window in ((96, 3, None), (128, 9, 1400), (64, 1, 200)):
        check(Attention("bf16", "bf16", 3 * group, 3, dim, cached=cached, window=window))
    check(Attention("int3nsep:96", "bf16", 3, 1, 32, cached=cached, sink=4))


@pytest.mark.parametrize("tokens", [2, 5, 40, 44])
@pytest.mark.parametrize("name", FORMATS)
def test_many_queries_see_only_what_came_before_them(name: str, tokens: int) -> None:
    check(Attention(name, name, heads=6, cached=300, tokens=tokens))


def test_a_whole_page_of_queries() -> None:
    for cached in (128, 256):
        check(Attention("int3nsep", "q4_0", cached=cached, tokens=128))


@pytest.mark.parametrize("window", [1, 2, 16, 127, 128, 129, 1000])
def test_windows_over_evicted_pages(window: int) -> None:
    for name in ("bf16", "q4_0", "int3nsep:32"):
        check(Attention(name, name, cached=400, window=window))
        check(Attention(name, name, cached=407, window=window, tokens=20))


@pytest.mark.parametrize("sink", [1, 4, 32])
@pytest.mark.parametrize(("k", "v"), [("int3nsep:32", "int3nsep:64"), ("q4_0", "int4nsep")])
def test_exact_sinks_in_front_of_the_pages(k: str, v: str, sink: int) -> None:
    case = Attention(k, v, sink=sink)
    for cached in (sink, sink + 1, sink + 32, sink + 128, sink + 129, 1100):
        check(replace(case, cached=cached))
    check(replace(case, cached=sink, tokens=sink))
    check(replace(case, cached=sink + 32, tokens=32, heads=8))
    check(replace(case, cached=207, tokens=20, softcap=5.0), sharpness=10)


@pytest.mark.parametrize("window", [1, 16, 129, 195, 204, 206, 207, 1000])
def test_sinks_outside_the_window_are_not_attended(window: int) -> None:
    for name in ("f32", "q4_0", "int3nsep:32"):
        for sink in (4, 32):
            check(Attention(name, name, cached=207, window=window, sink=sink))
            check(Attention(name, name, cached=227, window=window, tokens=20, sink=sink))


@pytest.mark.parametrize("softcap", [1.0, 5.0, 50.0])
def test_soft_capped_scores(softcap: float) -> None:
    for name in ("f32", "int3nsep"):
        check(Attention(name, name, cached=200, softcap=softcap, tokens=4), sharpness=10)


@pytest.mark.parametrize(
    ("k", "v"),
    [
        ("int3nsep:64", "int3nsep:256"),
        ("int3nsep:256", "int3nsep:64"),
        ("int3nsep:96", "int3nsep:64"),
        ("int3nsep:2048", "bf16"),
        ("q8_0", "int3nsep:32"),
        ("int3nsep:8160", "int3nsep:8192"),
    ],
)
def test_pages_of_unequal_length(k: str, v: str) -> None:
    for cached in (33, 64, 200, 256, 300, 2100):
        check(Attention(k, v, dim=32, cached=cached))
        check(Attention(k, v, dim=32, cached=cached, tokens=7, window=100))


@pytest.mark.parametrize("name", FORMATS)
def test_sharp_and_flat_scores(name: str) -> None:
    for sharpness in (0.0, 1e-3, 30.0, 1000.0):
        check(Attention(name, name, cached=260), sharpness)


class Growing(Attention):
    """Scores from 0 at the first token to some hundred at the last."""

    def inputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, k, v = super().inputs()
        growth = np.linspace(0, 100, len(k), dtype=np.float32)[:, None, None]
        return np.abs(q), k * 0.1 + growth * self.scale, v


@pytest.mark.parametrize("cached", [40, 333, 1100])
def test_a_maximum_that_rises_all_the_time(cached: int) -> None:
    """For one query, for many, on tiles, and where the last pages are all that counts."""
    for name in ("f32", "bf16", "q8_0"):
        for tokens in (1, 4, 40):
            check(Growing(name, name, heads=6, cached=cached, tokens=tokens))
            check(Growing(name, name, heads=6, cached=cached, tokens=tokens), sharpness=-1.0)
        check(Growing(name, name, cached=cached, tokens=40, softcap=30.0))


@dataclass(frozen=True)
class Leaping(Attention):
    """Scores that rise by about `height` every so many tokens."""

    height: float = 0.0
    every: int = 1

    def inputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, k, v = super().inputs()
        leaps = (np.arange(len(k)) // self.every * self.height).astype(np.float32)[:, None, None]
        return np.abs(q) + 1, k * 0.1 + leaps / (1.8 * self.dim**0.5), v * 1000


@pytest.mark.parametrize(
    ("height", "every"), [(4, 100), (12, 100), (30, 100), (50, 150), (80, 450), (200, 450)]
)
def test_a_maximum_that_leaps(height: float, every: int) -> None:
    """Within a page, from page to page, and within pages of several steps."""
    for name in ("f32", "bf16", "q8_0", "int8nsep:512"):
        for heads, tokens in ((4, 40), (12, 40), (4, 8)):
            case = Leaping(name, name, heads, 2, 64, 900, tokens, height=height, every=every)
            check(case)
            check(case, sharpness=-1.0)


@pytest.mark.parametrize("name", FORMATS)
def test_one_thread_equals_two_bit_for_bit(name: str) -> None:
    for case in (
        Attention(name, name, heads=6, cached=2500),
        Attention(name, name, heads=6, cached=300, tokens=40),
    ):
        layer, q = case.layer(CPU), case.inputs()[0]
        one, two = (attend(CpuOps(n), q, layer) for n in (1, CPU.threads))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", FORMATS)
def test_the_reference_attends_alike(name: str) -> None:
    for case in (
        Attention(name, name, cached=150, tokens=5),
        Attention(name, name, cached=150, tokens=5, window=20, softcap=3.0),
    ):
        reference = ReferenceOps()
        layer, q = case.layer(reference), case.inputs()[0]
        want = attend64(q, layer, 0.125, case.softcap)
        got = reference.attend(q, layer, 0.125, case.softcap)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_attention_leaves_queries_and_pages_alone() -> None:
    case = Attention("int3nsep", "q8_0", cached=150, tokens=5)
    layer, q = case.layer(CPU), case.inputs()[0]
    before = q.copy(), layer.k.decode(0), layer.v.decode(0)
    first, second = (attend(CPU, q, layer) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for old, new in zip(before, (q, layer.k.decode(0), layer.v.decode(0)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_distant_tokens_outside_the_window_change_nothing() -> None:
    case = Attention("f32", "f32", cached=250, window=40, tokens=3)
    whole = replace(case, window=None)
    layer, full, q = case.layer(CPU), whole.layer(CPU), case.inputs()[0]
    narrow = attend(CPU, q, layer)
    assert np.abs(narrow - attend(CPU, q, full)).max() > 1e-2
    full.window = 40  # the same tokens with nothing evicted
    np.testing.assert_array_equal(narrow, attend(CPU, q, full))
