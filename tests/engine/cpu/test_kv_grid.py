"""The CPU serves every type of the grid, those that are not listed included."""

from __future__ import annotations

import numpy as np
import pytest

from bench.op_cases import Attention
from engine.cpu import CpuOps
from engine.cpu.jit import call, kernel
from engine.cpu.kv_decode import DECODERS
from engine.cpu.kv_verbs import supported
from engine.cpu.simd import address_of
from engine.kv.cache import CacheType, LayerCache
from engine.kv.format import TokenFormat
from engine.kv.formats import ALL_KV_FORMATS, KV_FORMATS
from engine.kv.formats.rows import ROWS, RowFormat
from engine.reference import ReferenceOps

CPU, REFERENCE = CpuOps(), ReferenceOps()
TOKEN_FORMATS = [f for f in ALL_KV_FORMATS.values() if isinstance(f, TokenFormat)]
UNLISTED = sorted(set(ALL_KV_FORMATS) - set(KV_FORMATS))


@kernel
def decode_row(decoder, row, out, channels):
    call(decoder, (address_of(row), address_of(out), channels))


def test_every_named_type_has_verbs() -> None:
    assert all(
        supported(kind) and CPU.supports(CacheType.of(kind)) for kind in ALL_KV_FORMATS.values()
    )


@pytest.mark.parametrize("name", UNLISTED)
def test_attention_equals_the_references(name: str) -> None:
    for case in (
        Attention(name, name, cached=150),
        Attention(name, name, heads=6, dim=80, cached=290, tokens=3, window=140),
    ):
        want, got = case.case().prepare(REFERENCE)(), case.case().prepare(CPU)()
        # 16-bit queries and weights: up to 6e-5 of a score, which the softmax exponentiates
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-4 * np.abs(want).max())


@pytest.mark.parametrize("kind", ROWS, ids=[f.name for f in ROWS])
def test_rows_are_encoded_byte_for_byte(kind: RowFormat) -> None:
    rng = np.random.default_rng(kind.bits)
    for dim in (16, 64, 72, 256):
        x = rng.standard_normal((24, 2, dim)) * np.logspace(-9, 3, 24)[:, None, None]
        x[3], x[4], x[5, :, 1::2], x[5, :, ::2] = 0, -0.0, 0, -0.0
        x[6] = rng.integers(-8, 9, (2, dim)) / 2
        x = x.astype(np.float32)
        layer = LayerCache((CacheType.of(kind), CacheType.of(kind)), 2, dim, 64, None, 0)
        CPU.append(layer, CPU.asarray(x), CPU.asarray(-x))
        CPU.finish()
        for side, sign in ((layer.k, 1), (layer.v, -1)):
            page = side.pages[0]
            assert page is not None
            want = kind.encode(np.ascontiguousarray(sign * x.swapaxes(0, 1)), side.side)
            np.testing.assert_array_equal(page[:, : want.shape[1]], want)


@pytest.mark.parametrize("kind", TOKEN_FORMATS, ids=[f.name for f in TOKEN_FORMATS])
def test_decoders_write_their_values_and_nothing_else(kind: TokenFormat) -> None:
    for dim in (16, 64, 72, 80, 96):
        channels = kind.channels(dim)
        x = np.random.default_rng(dim).standard_normal((1, dim)).astype(np.float32)
        row, out = kind.encode(x, "k"), np.full(channels + 64, 1e9, np.float32)
        decode_row(DECODERS[kind.name].address, row, out, channels)
        np.testing.assert_allclose(out[:dim], kind.decode(row, dim, "k")[0], rtol=1e-6)
        assert (out[channels:] == 1e9).all()
