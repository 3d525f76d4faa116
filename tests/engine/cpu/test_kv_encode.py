"""The CPU writes every cache row byte for byte as the format's own NumPy does, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from engine import cpu
from engine.cpu import CpuOps
from engine.cpu.kv_encode import ENCODERS
from engine.errors import InputError
from engine.kv.cache import CacheType, LayerCache
from engine.kv.format import KVFormat, TokenFormat
from engine.kv.formats import ALL_KV_FORMATS, KV_FORMATS

CPU = CpuOps()
TOKEN_FORMATS = [f for f in KV_FORMATS.values() if isinstance(f, TokenFormat)]
HEAD_DIMS = (16, 64, 72, 80, 256)


def layer_of(kind: KVFormat, dim: int) -> LayerCache:
    types = (CacheType.of(kind), CacheType.of(kind))
    return LayerCache(types, 2, dim, 256, None, index=5)


def awkward(tokens: int, dim: int) -> np.ndarray:
    """float32 [tokens, 2, dim]: sizes from 1e-7 to 1e4, zeros, ties of 4 and 8 bits, one-hot."""
    rng = np.random.default_rng(dim)
    x = rng.standard_normal((tokens, 2, dim)) * np.logspace(-7, 4, tokens)[:, None, None]
    x[3], x[4] = 0, -0.0
    x[5], x[6] = rng.integers(-16, 17, (2, 2, dim)) / 2
    x[5:7, :, 0] = -8
    x[7] = rng.integers(-254, 255, (2, dim)) / 2
    x[7, :, 0] = 127
    x[8] = np.where(rng.random((2, dim)) < 0.5, -3, 3)
    x[9], x[9, :, dim // 3] = 0, -1
    return x.astype(np.float32)


def append(layer: LayerCache, k: np.ndarray, v: np.ndarray) -> None:
    CPU.append(layer, CPU.asarray(k), CPU.asarray(v))
    try:
        CPU.finish()
    finally:
        CPU.discard()


def test_every_token_format_has_an_encoder() -> None:
    every = ALL_KV_FORMATS.items()
    assert set(ENCODERS) == {name for name, kind in every if isinstance(kind, TokenFormat)}


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("kind", TOKEN_FORMATS, ids=[f.name for f in TOKEN_FORMATS])
def test_bytes_are_the_formats_own(kind: TokenFormat, dim: int) -> None:
    layer, x = layer_of(kind, dim), awkward(40, dim)
    for part in (slice(0, 1), slice(1, 17), slice(17, 40)):
        append(layer, x[part], -x[part])
    size = 40 * kind.row_nbytes(dim)
    for side, sign in ((layer.k, 1), (layer.v, -1)):
        page = side.pages[0]
        assert page is not None
        want = kind.encode(np.ascontiguousarray(sign * x.swapaxes(0, 1)), side.side)
        np.testing.assert_array_equal(page[:, :size], want)


@pytest.mark.parametrize("dim", [64, 72])
@pytest.mark.parametrize("kind", list(KV_FORMATS.values()), ids=list(KV_FORMATS))
def test_bytes_outside_the_appended_rows_stay(kind: KVFormat, dim: int) -> None:
    layer, x = layer_of(kind, dim), awkward(40, dim)
    append(layer, x[:10], x[:10])
    for side in (layer.k, layer.v):
        side.open_page(0)[:] = 0xAB
    append(layer, x[10:13], x[10:13])
    for side in (layer.k, layer.v):
        row = side.type.open_format.row_nbytes(dim)
        page = side.open_page(0)
        assert (page[:, : 10 * row] == 0xAB).all() and (page[:, 13 * row :] == 0xAB).all()
        assert (page[:, 10 * row : 13 * row] != 0xAB).any(axis=1).all()


@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", KV_FORMATS)
def test_a_value_that_is_not_finite_is_refused_by_layer_and_position(
    name: str, bad: float, side: str
) -> None:
    layer, x = layer_of(KV_FORMATS[name], 64), awkward(40, 64)
    append(layer, x[:20], x[:20])
    broken = x[20:].copy()
    broken[7, 1, 63] = bad
    k, v = (broken, x[20:]) if side == "key" else (x[20:], broken)
    with pytest.raises(InputError, match=rf"layer 5: the {side} .* position 27 .* not finite"):
        append(layer, k, v)


def test_of_many_bad_tokens_the_first_is_named_whoever_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "available_cores", lambda: 5)
    ops, x = CpuOps(5), np.full((256, 2, 64), np.nan, np.float32)
    for _ in range(1500):
        ops.append(layer_of(KV_FORMATS["q8_0"], 64), x, x)
        with pytest.raises(InputError, match="the key of the token at position 0 is"):
            ops.finish()


@pytest.mark.parametrize("kind", TOKEN_FORMATS, ids=[f.name for f in TOKEN_FORMATS])
def test_a_value_beyond_the_types_range_is_refused_and_one_within_is_not(kind: TokenFormat) -> None:
    layer, x = layer_of(kind, 64), np.full((1, 2, 64), kind.limit, np.float32)
    append(layer, x, x)
    assert np.isfinite(layer.k.decode(0)).all()
    with np.errstate(over="ignore"), pytest.raises(InputError, match=f"not finite as {kind.name}"):
        append(layer, x * 0, np.full_like(x, kind.limit) * np.float32(1.01))
