"""What the CPU packs anew is byte for byte what the formats' own NumPy does, weights included."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu.kv_repack import Repacking, repackable
from engine.cpu.team import Team
from engine.kv.cache import CacheType
from engine.kv.format import Side
from engine.kv.formats import kv_format
from engine.kv.side_cache import Count, SideCache, encode_small, page_queries

TEAM = Team(2)
HEADS = 3


def side_of(side: Side, old: str, small: str, dim: int) -> SideCache:
    found = kv_format(old)
    tokens = found.page_tokens or 128
    kind = CacheType(found, tokens, None, small=kv_format(f"{small}:{tokens}"))
    return SideCache(side, kind, HEADS, dim, tokens, Count(np.zeros(1, np.int64)))


def packed(side: SideCache, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([side.head_dim, seed])
    x = rng.standard_normal((HEADS, side.type.page_tokens, side.head_dim)).astype(np.float32)
    weights = (10.0 ** rng.uniform(-2, 2, (HEADS, side.head_dim))).astype(np.float32)
    return side.type.format.encode(x, side.side, weights)


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize(
    ("old", "small"),
    [
        ("int3wfq:32", "int2wfq"),
        ("int4wfq", "int2wf"),
        ("bf16", "int3wfq"),
        ("q8_0", "int3wf"),
        ("int4nsep", "int3wfq"),
        ("int6pchan:96", "int3nsep"),
        ("int3nsep-sym", "kivi2"),
        ("kivi4-g64", "int2wf"),
    ],
)
@pytest.mark.parametrize("dim", [64, 72])
def test_repacked_pages_are_the_recipes(side: Side, old: str, small: str, dim: int) -> None:
    own = side_of(side, old, small, dim)
    page, kind = packed(own), own.type
    assert kind.small is not None and repackable(own)
    repacking = Repacking(TEAM.threads, own)
    for each in (page, packed(own, seed=1)):
        found = np.zeros((HEADS, kind.small.page_nbytes(kind.page_tokens, dim)), np.uint8)
        want = found.copy()
        encode_small(own, each, want)
        repacking.run(TEAM, each, found)
        np.testing.assert_array_equal(found, want)


def test_weighted_keys_are_repacked_by_their_weights_and_nothing_else_is() -> None:
    cases: tuple[tuple[Side, str, str, bool], ...] = (
        ("k", "int3wfq", "int2wfq", True),
        ("k", "int3wfq", "int2wf", False),
        ("k", "bf16", "int2wfq", False),
        ("v", "int3wfq", "int2wfq", False),
    )
    for side, old, small, weighs in cases:
        own = side_of(side, old, small, 64)
        page, kind = packed(own), own.type
        assert (page_queries(own, page) is not None) == weighs
        assert kind.small is not None
        new = np.zeros((HEADS, kind.small.page_nbytes(kind.page_tokens, 64)), np.uint8)
        encode_small(own, page, new)
        plain = kind.small.encode(kind.format.decode(page, 64, own.side), own.side)
        assert (new != plain).any() == weighs
