"""Score and mix on packed pages: which verbs a KV format has.

    score(page, n, q, stride, rows, dim, out, scratch, ...)    out[i, t] = q[i] . k[t]
    mix(page, n, p, stride, rows, dim, out, scratch, ...)      out[i, d] += sum_t p[i, t] v[t, d]

for the n tokens of one KV head's page at `page` and `rows` query rows at once.  q and mix's out are
float32 [rows, W] with W = dim rounded up to 32 and zeros behind dim; score's out and p are float32
with `stride` bytes between rows.  Three format parameters follow.  `scratch` holds
`scratch_nbytes`.

There is a pair for all token formats and one for each family of page formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from engine.cpu import kv_kivi, kv_pages, kv_tokens, kv_waterfill
from engine.cpu.jit import Verb
from engine.cpu.kv_decode import DECODERS
from engine.kv.format import KVFormat, TokenFormat
from engine.kv.formats.channels import ChannelFormat, padded_dim
from engine.kv.formats.kivi import KiviFormat
from engine.kv.formats.waterfill import WaterFilledFormat, group_channels

_TOKENS = Verb(kv_tokens.score), Verb(kv_tokens.mix)
_PAGES = Verb(kv_pages.score), Verb(kv_pages.mix)
_KIVI = Verb(kv_kivi.score), Verb(kv_kivi.mix)
_WATER_FILLED = Verb(kv_waterfill.score), Verb(kv_waterfill.mix)


@dataclass(frozen=True)
class PageVerbs:
    """Addresses of score and mix for pages of one format, bytes per head and page, parameters."""

    score: int
    mix: int
    head_nbytes: int
    parameters: tuple[int, int, int]


def supported(kind: KVFormat) -> bool:
    """Whether there are verbs for the format."""
    if isinstance(kind, TokenFormat):
        return kind.name in DECODERS
    return isinstance(kind, ChannelFormat | WaterFilledFormat | KiviFormat)


@lru_cache(maxsize=64)
def page_verbs(kind: KVFormat, page_tokens: int, head_dim: int) -> PageVerbs:
    """The verbs of a supported format, compiled on first use."""
    if isinstance(kind, TokenFormat):
        score, mix = _TOKENS
        decoder = DECODERS[kind.name].address
        parameters = (decoder, kind.row_nbytes(head_dim), kind.channels(head_dim))
    elif isinstance(kind, WaterFilledFormat):
        score, mix = _WATER_FILLED
        group = group_channels(page_tokens, "k")
        parameters = (kind.codes_nbytes(page_tokens, head_dim), group, 0)
    elif isinstance(kind, KiviFormat):
        score, mix = _KIVI
        parameters = (kind.codes_nbytes(page_tokens, head_dim), kind.bits, kind.group)
    else:
        assert isinstance(kind, ChannelFormat)
        score, mix = _PAGES
        parts = kv_pages.NORMS * (kind.norms != "none") + kv_pages.MINIMA * kind.asym
        parameters = (kind.codes_nbytes(page_tokens, head_dim), kind.bits, parts)
    nbytes = kind.page_nbytes(page_tokens, head_dim)
    return PageVerbs(score.address, mix.address, nbytes, parameters)


def scratch_nbytes(rows: int, head_dim: int, page_tokens: int) -> int:
    """Bytes that any verb may need for `rows` query rows."""
    wide = -(-head_dim // 32) * 32
    queries = 4 * rows * (wide + 16) + 64 * padded_dim(head_dim)
    weights = 4 * rows * page_tokens + 64 * kv_pages.MIX_TOKENS
    families = (
        module.scratch_nbytes(rows, padded_dim(head_dim), page_tokens)
        for module in (kv_kivi, kv_waterfill)
    )
    return max(4 * kv_tokens.BLOCK * wide, queries, weights, *families) + 64
