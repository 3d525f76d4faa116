"""The CPU packs pages byte for byte as the format's own NumPy, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rows import pages

from engine.cpu import CpuOps
from engine.cpu.kv_seal import has_verb, seal_pages
from engine.cpu.kv_tail import places
from engine.cpu.memory import Pool
from engine.cpu.program import Program
from engine.cpu.team import Team
from engine.kv.cache import CacheType, LayerCache
from engine.kv.format import Side, TokenFormat
from engine.kv.formats import ALL_KV_FORMATS, kv_format
from engine.kv.formats.channels import CHANNELS, ChannelFormat
from engine.kv.formats.floats import BF16, F32
from engine.kv.formats.kivi import KIVI, KiviFormat
from engine.kv.formats.waterfill import WATER_FILLED, WaterFilledFormat
from engine.kv.queries import QueryPower
from engine.kv.side_cache import encode_tail

TEAM, POOL = Team(2), Pool()
SIDES: tuple[Side, Side] = ("k", "v")
Sealed = ChannelFormat | KiviFormat | WaterFilledFormat
SERVED = (*CHANNELS, *KIVI, *WATER_FILLED)
TAILS = [f for f in ALL_KV_FORMATS.values() if isinstance(f, TokenFormat)]
every_member = pytest.mark.parametrize("kind", SERVED, ids=[f.name for f in SERVED])
every_channel_type = pytest.mark.parametrize("kind", CHANNELS, ids=[f.name for f in CHANNELS])


def awkward(tokens: int, dim: int) -> np.ndarray:
    """float32 [pages, tokens, dim]: those of all format tests, and the extremes of float32."""
    rng = np.random.default_rng(tokens + dim)
    wild = rng.standard_normal((tokens, dim)) * 10.0 ** rng.uniform(-44, 37, (tokens, dim))
    wild[3], wild[4, ::2] = 0, -0.0
    subnormal = rng.integers(-3, 4, (tokens, dim)) * 1e-40
    return np.stack([*pages(tokens, dim).values(), wild, subnormal]).astype(np.float32)


def powers(pages: int, tokens: int, dim: int) -> QueryPower:
    """Of queries that differ widely between channels; the first head has none."""
    found, rng = QueryPower(tokens, pages, dim), np.random.default_rng(dim)
    scale = 10.0 ** rng.uniform(-6, 6, (pages, dim))
    scale[0] = 0
    found.write(0, (rng.standard_normal((tokens, pages, dim)) * scale).astype(np.float32))
    return found


def assert_same_bytes(x: np.ndarray, stored: Sealed, tail: TokenFormat) -> None:
    """Pages float32 x [pages, P, dim], one per head."""
    *_, tokens, dim = x.shape
    kind = CacheType(replace(stored, page_tokens=tokens), tokens, tail)
    for side in SIDES:
        queries = powers(len(x), tokens, dim) if kind.weighs(side) else None
        held, nbytes = tail.encode(x, side), kind.format.page_nbytes(tokens, dim)
        want = np.empty((len(x), nbytes), np.uint8)
        # a line of memory behind every page, which is to stay as it was
        guarded = np.full((len(x), nbytes + 64), 0xAB, np.uint8)
        encode_tail(kind, held, side, dim, want, queries)
        program = Program()
        rows = [] if queries is None else [queries.rows]
        where = program, POOL, TEAM.threads, kind
        seal_pages(*where, places(program, [held]), side, dim, places(program, [guarded]), rows)
        TEAM.run(program.table())
        np.testing.assert_array_equal(guarded[:, :nbytes], want)
        assert (guarded[:, nbytes:] == 0xAB).all()


def test_every_page_type_is_served() -> None:
    assert all(has_verb(CacheType.of(kind)) for kind in SERVED)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("tokens", [32, 128])
@every_member
def test_bytes_are_the_formats_own(kind: Sealed, tokens: int) -> None:
    for dim in (64, 72, 80, 96, 128, 256):
        assert_same_bytes(awkward(tokens, dim), kind, BF16)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dim", [8, 40, 64])
@pytest.mark.parametrize("tokens", [64, 96, 2048])
@pytest.mark.parametrize(
    "name", ["int3nsep", "int6pchan", "int7nsep-sym-raw", "kivi3-g64", "int3wfq"]
)
def test_bytes_are_the_formats_own_for_any_page_length(name: str, tokens: int, dim: int) -> None:
    kind = kv_format(name)
    assert isinstance(kind, Sealed)
    assert_same_bytes(awkward(tokens, dim), kind, BF16)


@pytest.mark.parametrize("dim", [64, 72])
@pytest.mark.parametrize("tail", TAILS, ids=[f.name for f in TAILS])
def test_bytes_are_the_formats_own_behind_any_tail(tail: TokenFormat, dim: int) -> None:
    x = np.stack([page for name, page in pages(64, dim).items() if name != "huge"])
    for name in ("int3nsep", "int4pchan", "kivi2", "int2wfq"):
        kind = kv_format(name)
        assert isinstance(kind, Sealed)
        assert_same_bytes(x, kind, tail)


@every_channel_type
def test_a_code_next_to_a_tie_is_the_quotients(kind: ChannelFormat) -> None:
    # the quotient is found without a division: it must be right in the last bit
    rng = np.random.default_rng(kind.bits)
    top = 2**kind.bits - 1 if kind.asym else 2 ** (kind.bits - 1) - 1
    s = (2.0 ** rng.uniform(-20, 5, (8, 1, 128))).astype(np.float16).astype(np.float32)
    x = (rng.integers(0, top, (8, 128, 128)) + np.float32(0.5)) * s
    x = np.nextafter(x, np.array([0, np.inf], np.float32)[rng.integers(0, 2, x.shape)])
    x[:, 0], x[:, 1] = 0, top * s[:, 0]
    assert_same_bytes(x, kind, F32)


def test_sealing_a_layer_uses_the_packed_pages_of_each_head() -> None:
    kind = CacheType.of(kv_format("int3nsep:64"))
    one, both = (CpuOps(threads) for threads in (1, min(2, CpuOps().threads)))
    x = np.random.default_rng(0).standard_normal((64, 5, 80)).astype(np.float32)
    layers = []
    for ops in (one, both):
        layers.append(LayerCache((kind, kind), 5, 80, 64, None, 0))
        ops.append(layers[-1], ops.asarray(x), ops.asarray(-x))
        ops.seal(layers[-1])
        ops.finish()
    held = BF16.encode(np.ascontiguousarray(x.swapaxes(0, 1)), "k")
    exact = BF16.decode(held, 80, "k")
    for layer in layers:
        for side, sign in ((layer.k, 1), (layer.v, -1)):
            want = kind.format.encode(sign * exact, side.side)
            np.testing.assert_array_equal(side.pages[0], want)
