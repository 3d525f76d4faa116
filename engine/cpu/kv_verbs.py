"""Score and mix on packed pages: which verbs a KV format has.

    score(page, n, q, stride, rows, dim, out, scratch, ...)    out[i, t] = q[i] . k[t]
    mix(page, n, p, stride, rows, dim, out, scratch, ...)      out[i, d] += sum_t p[i, t] v[t, d]

for the n tokens of one KV head's page at `page` and `rows` query rows at once.  q and mix's out are
float32 [rows, W] with W = dim rounded up to 32 and zeros behind dim; score's out and p are float32
with `stride` bytes between rows.  Three format parameters follow.  `scratch` holds
`scratch_nbytes`; the word in front of it is the address of the page that comes next, for verbs that
ask for memory ahead.

Verbs for runs of pages have (cells, offset, size, n, ...) instead: n tokens in pages of `size`, the
KV head `offset` bytes into those whose addresses are at `cells`.  Score asks for the page ahead,
mix for the page but one.

Behind the n tokens, up to the next multiple of 32, score may write anything, and mix ignores what
is finite.  Pages of codes are multiplied by 16-bit integers, a few rows with tokens' codes by 23
bits or, in mixes of the commonest blocks, as float32.  Other tokens are multiplied as float32, bf16
on hosts with tile registers as two bfloat16 halves.  Many rows meet tiles there instead
(`engine.cpu.kv_tiles`).
There is a pair for all token formats, one for bf16 on tile registers, one for codes in blocks and
one for rows of codes (with ranges and without), one for the water-filled page formats, and a pair
per number of bits for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from engine.cpu import (
    kv_bf16,
    kv_block_mix,
    kv_blocks,
    kv_code_tiles,
    kv_kivi,
    kv_pages,
    kv_ranges,
    kv_tiles,
    kv_tokens,
    kv_waterfill,
)
from engine.cpu.host import AMX
from engine.cpu.jit import Verb
from engine.cpu.kv_block_codes import codes_of
from engine.cpu.kv_decode import DECODERS
from engine.kv.format import BlockFormat, KVFormat, TokenFormat
from engine.kv.formats.channels import ChannelFormat, padded_dim
from engine.kv.formats.floats import BF16
from engine.kv.formats.kivi import KiviFormat
from engine.kv.formats.waterfill import WaterFilledFormat
from engine.memory import address


@dataclass(frozen=True)
class PageVerbs:
    """Addresses of score and mix for pages of one format, bytes per head and page, parameters, and
    whether the verbs are those for runs of pages."""

    score: int
    mix: int
    head_nbytes: int
    parameters: tuple[int, int, int]
    runs: bool


@dataclass(frozen=True)
class TileVerbs:
    """Addresses of the verbs that make tiles of keys and of values, their parameters, and whether
    bfloat16 holds all tokens exactly."""

    keys: int
    values: int
    parameters: tuple[int, int, int]
    exact: bool


def supported(kind: KVFormat) -> bool:
    """Whether there are verbs for the format."""
    if isinstance(kind, TokenFormat):
        return kind.name in DECODERS
    return isinstance(kind, ChannelFormat | KiviFormat | WaterFilledFormat)


def _joined(kind: TokenFormat, head_dim: int) -> bool:
    """Whether rows have no padding, so that one call decodes many."""
    return isinstance(kind, BlockFormat) and kind.channels(head_dim) % 32 == 0


def _token_verbs(
    kind: TokenFormat, head_dim: int, tiles: bool
) -> tuple[Verb, Verb, tuple[int, int, int]]:
    channels, row_nbytes = kind.channels(head_dim), kind.row_nbytes(head_dim)
    joined = _joined(kind, head_dim)
    if tiles and kind == BF16 and head_dim % 32 == 0:
        score, mix = kv_bf16.SCORE, kv_bf16.MIX
    else:
        score, mix = kv_tokens.score_verb(joined), kv_tokens.mix_verb(joined)
    parameters = (DECODERS[kind.name].address, row_nbytes, channels)
    codes = codes_of(kind, head_dim)
    if codes is None:
        return score, mix, parameters
    fields = kv_blocks.record(
        codes.turn, codes.interleave, row_nbytes, codes.middle,
        score.address, mix.address, *parameters,
    )  # fmt: skip
    score = kv_blocks.score_verb(codes.ranged, codes.whole)
    mix = kv_block_mix.mix_verb(kind) or kv_blocks.mix_verb(codes.ranged, codes.whole)
    return score, mix, (address(fields), 0, 0)


@lru_cache(maxsize=64)
def page_verbs(kind: KVFormat, page_tokens: int, head_dim: int, tiles: bool = AMX) -> PageVerbs:
    """The verbs of a supported format, compiled on first use; `tiles`: on tile registers."""
    runs = False
    if isinstance(kind, TokenFormat):
        score, mix, parameters = _token_verbs(kind, head_dim, tiles)
        runs = score is kv_bf16.SCORE
    elif isinstance(kind, WaterFilledFormat):
        score, mix = kv_waterfill.score_verb(tiles), kv_waterfill.mix_verb(tiles)
        parameters = (kind.codes_nbytes(page_tokens, head_dim), 0, 0)
    elif isinstance(kind, KiviFormat):
        score, mix = kv_kivi.score_verb(kind.bits, tiles), kv_kivi.mix_verb(kind.bits, tiles)
        parameters = (kind.codes_nbytes(page_tokens, head_dim), kind.group, 0)
    else:
        assert isinstance(kind, ChannelFormat)
        score, mix = kv_pages.score_verb(kind.bits, tiles), kv_pages.mix_verb(kind.bits, tiles)
        runs = True
        parts = kv_ranges.NORMS * (kind.norms != "none") + kv_ranges.MINIMA * kind.asym
        parameters = (kind.codes_nbytes(page_tokens, head_dim), parts, 0)
    nbytes = kind.page_nbytes(page_tokens, head_dim)
    return PageVerbs(score.address, mix.address, nbytes, parameters, runs)


def _token_tile_verbs(kind: TokenFormat, head_dim: int) -> tuple[Verb, Verb]:
    if kind == BF16 and head_dim % 32 == 0:
        return kv_tiles.BF16_KEYS, kv_tiles.BF16_VALUES
    codes = codes_of(kind, head_dim)
    if codes is None:
        joined = _joined(kind, head_dim)
        return kv_tiles.key_verb(joined), kv_tiles.value_verb(joined)
    ranged, whole = codes.ranged, codes.whole
    return kv_code_tiles.key_verb(ranged, whole), kv_code_tiles.value_verb(ranged, whole)


@lru_cache(maxsize=64)
def tile_verbs(kind: KVFormat, page_tokens: int, head_dim: int) -> TileVerbs:
    """The verbs of a supported format on tile registers."""
    parameters = page_verbs(kind, page_tokens, head_dim).parameters
    if isinstance(kind, TokenFormat):
        keys, values = _token_tile_verbs(kind, head_dim)
    elif isinstance(kind, WaterFilledFormat):
        keys, values = kv_waterfill.KEY_TILES, kv_waterfill.VALUE_TILES
    elif isinstance(kind, KiviFormat):
        keys, values = kv_kivi.key_verb(kind.bits), kv_kivi.value_verb(kind.bits)
    else:
        assert isinstance(kind, ChannelFormat)
        keys, values = kv_pages.key_verb(kind.bits), kv_pages.value_verb(kind.bits)
    return TileVerbs(keys.address, values.address, parameters, kind == BF16)


def tiles_scratch_nbytes(head_dim: int, page_tokens: int) -> int:
    """Bytes that any verb for tiles may need."""
    lanes = padded_dim(head_dim)
    return max(
        kv_tiles.scratch_nbytes(-(-head_dim // 32) * 32),
        kv_code_tiles.scratch_nbytes(-(-head_dim // 32) * 32),
        kv_pages.tiles_scratch_nbytes(lanes),
        kv_kivi.tiles_scratch_nbytes(lanes),
        kv_waterfill.tiles_scratch_nbytes(lanes, page_tokens),
    )


def scratch_nbytes(rows: int, head_dim: int, page_tokens: int) -> int:
    """Bytes that any verb may need for `rows` query rows."""
    lanes = padded_dim(head_dim)
    return 64 + max(
        kv_tokens.scratch_nbytes(head_dim),
        kv_bf16.scratch_nbytes(head_dim),
        kv_blocks.scratch_nbytes(head_dim),
        kv_pages.scratch_nbytes(rows, head_dim),
        kv_kivi.scratch_nbytes(rows, lanes),
        kv_waterfill.scratch_nbytes(rows, lanes, page_tokens),
    )
