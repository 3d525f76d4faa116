"""Tiles of every format hold its page, as two bfloat16 halves or, where that is exact, as one."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu.host import AMX
from engine.cpu.jit import call, kernel
from engine.cpu.kv_verbs import tile_verbs, tiles_scratch_nbytes
from engine.cpu.simd import address_of
from engine.kv.format import Side
from engine.kv.formats import KV_FORMATS, kv_format

pytestmark = pytest.mark.skipif(not AMX, reason="no tile registers")
GUARD = 64


@kernel
def run_verb(verb, page, n, dim, tiles, low, apart, scratch, p, r, s):
    arguments = (
        address_of(page), n, dim, address_of(tiles), low, apart, address_of(scratch), p, r, s
    )  # fmt: skip
    call(verb, arguments)


def as_float(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def tiles_of(name: str, side: Side, dim: int, n: int | None, halves: int) -> None:
    """Run the verb and compare what its tiles hold."""
    kind = kv_format(name)
    size = kind.page_tokens or 256
    rng, n = np.random.default_rng(dim), n or size
    page = kind.encode(rng.standard_normal((1, size, dim), np.float32), side)[0]
    want = np.zeros((-(-n // 32) * 32, -(-dim // 32) * 32), np.float32)
    want[:n, :dim] = kind.decode(page[None], dim, side)[0, :n]
    verbs = tile_verbs(kind, size, dim)
    verb = verbs.keys if side == "k" else verbs.values
    # groups of 16 lanes, tiles, pairs, lanes, which of a pair; one group more is left alone
    lanes, depth = want.shape if side == "k" else want.shape[::-1]
    shape = lanes // 16 + 1, depth // 32, 16, 16, 2
    tiles = np.full((halves, *shape), 0xA5A5, np.uint16)
    scratch = np.full(tiles_scratch_nbytes(dim, size) + GUARD, 0xA5, np.uint8)
    low = tiles.strides[0] if halves == 2 else 0
    run_verb(verb, page, n, dim, tiles, low, tiles.strides[1], scratch, *verbs.parameters)
    assert (scratch[-GUARD:] == 0xA5).all() and (tiles[:, -1] == 0xA5A5).all()
    got = as_float(tiles[:, :-1]).sum(0).transpose(0, 3, 1, 2, 4).reshape(lanes, depth)
    got = got if side == "k" else got.T
    error = np.abs(got - want)[:n, :dim].max()
    assert error <= (0 if verbs.exact else 2e-5) * np.abs(want).max(), f"{name} {dim}: {error}"
    assert np.isfinite(got).all() and (got[n:] == 0).all()


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize("name", KV_FORMATS)
def test_tiles_hold_the_page(name: str, side: Side) -> None:
    for dim in (16, 64, 72, 128):
        for n in (None,) if kv_format(name).page_tokens else (None, 1, 13, 32, 77, 205):
            tiles_of(name, side, dim, n, 2)


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize("name", ["hqq2:32", "hqq3:64", "hqq4:128"])
def test_tiles_of_rows_in_groups(name: str, side: Side) -> None:
    for dim in (64, 96, 192, 256):
        for n in (31, 128, 200):
            tiles_of(name, side, dim, n, 2)


@pytest.mark.parametrize("side", ["k", "v"])
def test_bf16_needs_no_low_halves(side: Side) -> None:
    for dim in (32, 48, 96):
        for n in (1, 31, 33, 128):
            tiles_of("bf16", side, dim, n, 1)


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize(
    "name", ["int3nsep:32", "int3nsep-sym:160", "int3wf:32", "int4wf:160", "int3wf:512", "kivi3:96"]
)
def test_pages_of_every_length(name: str, side: Side) -> None:
    for dim in (48, 80, 256):
        tiles_of(name, side, dim, None, 2)
