"""What attention is told: the argument block of its entries, and where it says pages are.

The cached tokens are those at the address START plus PENDING when the entry runs: one recording
serves every token.  PENDING has the sinks taken off.
"""

from __future__ import annotations

from functools import lru_cache

from engine.cpu.jit import field, inlined
from engine.cpu.kv_verbs import page_verbs, tile_verbs
from engine.cpu.simd import load_i64
from engine.kv.cache import CacheType, SideCache
from engine.kv.format import KVFormat, Side
from engine.memory import address

# Shapes, addresses, then the fields of either side and of the bias.
HEADS, KV_HEADS, DIM, TOKENS, START, PENDING, WINDOW, SPAN, BLOCK, PARTS, UNITS = range(1, 12)
QUERIES, OUT, FACTORS, PARTIAL, PARTIAL_NBYTES, SCRATCH, SCRATCH_NBYTES = range(12, 19)
SINK, UNIT, FIRST, FINISHED, SLOTS, K, V, BIAS, BIAS_NBYTES = *range(19, 25), 75, 126, 138
# Of a side: its forms of pages, each with the fields behind them.
PAGE, SHRUNK, PACKED, OPEN, SINKS, SMALL, RECENT = 0, 1, 2, 14, 26, 38, 50
TABLE, VERB, NBYTES, PARAMETER, RUNS, TILES, EXACT, TILE_PARAMETER = 0, 1, 2, 3, 6, 7, 8, 9


def _form(stored: KVFormat, tokens: int, head_dim: int, side: Side, tiled: bool) -> tuple[int, ...]:
    """The fields of a form of pages behind its table."""
    verbs = page_verbs(stored, tokens, head_dim)
    verb = verbs.score if side == "k" else verbs.mix
    fields = verb, verbs.head_nbytes, *verbs.parameters, verbs.runs
    if not tiled:
        return (*fields, *[0] * 5)
    tiles = tile_verbs(stored, tokens, head_dim)
    verb = tiles.keys if side == "k" else tiles.values
    return (*fields, verb, tiles.exact, *tiles.parameters)


@lru_cache(maxsize=64)
def _forms(kind: CacheType, head_dim: int, side: Side, tiled: bool) -> list[tuple[int, ...]]:
    """The same of all forms: every layer of a model asks, and every chunk."""
    return [
        _form(stored, tokens, head_dim, side, tiled)
        for stored, tokens in (
            (kind.format, kind.page_tokens),
            (kind.open_format, kind.page_tokens),
            (kind.sink_format if kind.sink else kind.open_format, kind.sink),
            (kind.small or kind.format, kind.page_tokens),
        )
    ]


def side_fields(side: SideCache, open_table: int, tiled: bool) -> tuple[int, ...]:
    """A side's fields, open pages being in a table of their own."""
    kind, table = side.type, address(side.table)
    packed, opened, sinks, small = _forms(kind, side.head_dim, side.side, tiled)
    return (
        kind.page_tokens, address(side.shrunk), table, *packed, open_table, *opened,
        table, *sinks, table, *small, kind.recent,
    )  # fmt: skip


@inlined
def cached_tokens(plan):
    """Tokens in the cache behind the sinks, the queries' own included."""
    return load_i64(field(plan, START)) + field(plan, PENDING)


@inlined
def stored_form(plan, side, index):
    """Where the fields of page `index` begin: packed, smaller, open or sinks."""
    if index < 0:
        return side + SINKS
    # no page is packed between the queries: the newest tokens and what shares their pages are open
    first_open = (cached_tokens(plan) - 1 - field(plan, side + RECENT)) // field(plan, side + PAGE)
    if index >= first_open:
        return side + OPEN
    return side + (SMALL if index < load_i64(field(plan, side + SHRUNK)) else PACKED)


@inlined
def page_of(plan, side, index, head):
    """The address of KV head `head` in page `index`."""
    stored = stored_form(plan, side, index)
    return load_i64(field(plan, stored + TABLE) + 8 * index) + head * field(plan, stored + NBYTES)


@inlined
def page_tokens(plan, side, index):
    """How many tokens page `index` holds."""
    if index < 0:
        return min(field(plan, SINK), cached_tokens(plan) + field(plan, SINK))
    size = field(plan, side + PAGE)
    return min(size, cached_tokens(plan) - index * size)
