"""Score and mix on packed pages, for each family of KV formats.

    score(page, n, q, stride, rows, dim, out, scratch, ...)    out[i, t] = q[i] . k[t]
    mix(page, n, p, stride, rows, dim, out, scratch, ...)      out[i, d] += sum_t p[i, t] v[t, d]

for the n tokens of one KV head's page at `page` and `rows` query rows at once.  q and mix's out are
float32 [rows, W] with W = dim rounded up to 32 and zeros behind dim; score's out and p are float32
with `stride` bytes between rows.  Three format parameters follow.  `scratch` holds
`scratch_nbytes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from engine.cpu.blocks import BLOCK_DECODERS
from engine.cpu.jit import Verb, call, kernel
from engine.cpu.simd import (
    convert,
    f16x16,
    f32x16,
    fma,
    load,
    load_f32,
    reduce_add,
    splat,
    store,
    store_f32,
    u32x16,
    zeros,
)
from engine.kv.format import KVFormat, TokenFormat
from engine.kv.formats.nsep import NSep, padded_dim

_BLOCK = 16  # tokens decoded at a time: their float32 rows stay in the first-level cache
_MIX_TOKENS = 128  # tokens of a page format unpacked at a time


@kernel
def width(dim):
    return (dim + 31) & ~31


@kernel
def _row_dot(a, b, wide):
    """Sum of `wide` products, a multiple of 32."""
    s0, s1 = zeros(f32x16), zeros(f32x16)
    for i in range(0, 4 * wide, 128):
        s0 = fma(load(f32x16, a + i), load(f32x16, b + i), s0)
        s1 = fma(load(f32x16, a + i + 64), load(f32x16, b + i + 64), s1)
    return reduce_add(s0 + s1)


@kernel
def _decode_tokens(decoder, rows, count, row_nbytes, values, target, wide):
    """`count` packed rows as float32 rows of `wide` values."""
    for t in range(count):
        call(decoder, (rows + t * row_nbytes, target + 4 * t * wide, values))


def token_score(page, n, q, stride, rows, dim, out, scratch, decoder, row_nbytes, values):
    wide = width(dim)
    for t0 in range(0, n, _BLOCK):
        count = min(_BLOCK, n - t0)
        _decode_tokens(decoder, page + t0 * row_nbytes, count, row_nbytes, values, scratch, wide)
        for i in range(rows):
            for t in range(count):
                score = _row_dot(q + 4 * i * wide, scratch + 4 * t * wide, wide)
                store_f32(out + i * stride + 4 * (t0 + t), score)


def token_mix(page, n, p, stride, rows, dim, out, scratch, decoder, row_nbytes, values):
    wide = width(dim)
    for t0 in range(0, n, _BLOCK):
        count = min(_BLOCK, n - t0)
        _decode_tokens(decoder, page + t0 * row_nbytes, count, row_nbytes, values, scratch, wide)
        for i in range(rows):
            weights = p + i * stride + 4 * t0
            for c in range(0, 4 * wide, 128):
                target = out + 4 * i * wide + c
                a, b = load(f32x16, target), load(f32x16, target + 64)
                for t in range(count):
                    weight = splat(f32x16, load_f32(weights + 4 * t))
                    a = fma(weight, load(f32x16, scratch + 4 * t * wide + c), a)
                    b = fma(weight, load(f32x16, scratch + 4 * t * wide + c + 64), b)
                store(target, a)
                store(target + 64, b)


@kernel
def _unpack_steps(codes, first, count, target):
    """Steps first..first+count of 3-bit codes (`engine.bits`) as float32 [4 count, 16 lanes]."""
    for k in range(first, first + count):
        lines, j = codes + (k >> 3) * 192, k & 7
        low = (load(u32x16, lines + 64 * (j >> 2)) >> (2 * (j & 3))) & 0x03030303
        high = (load(u32x16, lines + 128) >> j) & 0x01010101
        word = low | (high << 2)
        for byte in range(4):
            store(target + 64 * byte, convert(f32x16, (word >> (8 * byte)) & 7))
        target += 256


@kernel
def _lane_dots(weights, lanes, n):
    """sum_i weights[i] lanes[i] over float32 weights [n] and lanes [n, 16], n a multiple of 4."""
    a, b = zeros(f32x16), zeros(f32x16)
    for i in range(0, n, 2):
        a = fma(splat(f32x16, load_f32(weights + 4 * i)), load(f32x16, lanes + 64 * i), a)
        b = fma(splat(f32x16, load_f32(weights + 4 * i + 4)), load(f32x16, lanes + 64 * i + 64), b)
    return a + b


def nsep_score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, unused, unused2):
    """n'_t (q . m + (q s) . code_t): the ranges are folded into q once per page."""
    wide, lanes = width(dim), (dim + 15) & ~15
    norms = page + codes_nbytes
    m, s = norms + 2 * n, norms + 2 * n + 2 * lanes
    folded = scratch
    offsets = folded + 4 * rows * wide
    codes = offsets + 4 * ((rows + 15) & ~15)
    for i in range(rows):
        total = zeros(f32x16)
        for c in range(0, lanes, 16):
            query = load(f32x16, q + 4 * (i * wide + c))
            total = fma(query, convert(f32x16, load(f16x16, m + 2 * c)), total)
            scaled = query * convert(f32x16, load(f16x16, s + 2 * c))
            store(folded + 4 * (i * wide + c), scaled)
        store_f32(offsets + 4 * i, reduce_add(total))
    for t in range(0, n, 16):
        _unpack_steps(page, t // 16 * (lanes // 4), lanes // 4, codes)
        norm = convert(f32x16, load(f16x16, norms + 2 * t))
        for i in range(rows):
            dots = _lane_dots(folded + 4 * i * wide, codes, lanes)
            offset = splat(f32x16, load_f32(offsets + 4 * i))
            store(out + i * stride + 4 * t, (dots + offset) * norm)


def nsep_mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, unused, unused2):
    """m_d sum_t w_t + s_d sum_t w_t code_td with w_t = p_t n'_t."""
    wide, lanes = width(dim), (dim + 15) & ~15
    norms = page + codes_nbytes
    m, s = norms + 2 * n, norms + 2 * n + 2 * lanes
    weights = scratch
    codes = weights + 4 * rows * n
    for i in range(rows):
        total = zeros(f32x16)
        for t in range(0, n, 16):
            norm = convert(f32x16, load(f16x16, norms + 2 * t))
            weight = load(f32x16, p + i * stride + 4 * t) * norm
            total = total + weight
            store(weights + 4 * (i * n + t), weight)
        mass = splat(f32x16, reduce_add(total))
        for c in range(0, lanes, 16):
            target = out + 4 * (i * wide + c)
            low = convert(f32x16, load(f16x16, m + 2 * c))
            store(target, fma(low, mass, load(f32x16, target)))
    for t0 in range(0, n, _MIX_TOKENS):
        count = min(_MIX_TOKENS, n - t0)
        for c in range(0, lanes, 16):
            _unpack_steps(page, (c // 16 * n + t0) // 4, count // 4, codes)
            step = convert(f32x16, load(f16x16, s + 2 * c))
            for i in range(rows):
                target = out + 4 * (i * wide + c)
                dots = _lane_dots(weights + 4 * (i * n + t0), codes, count)
                store(target, fma(dots, step, load(f32x16, target)))


_TOKEN = Verb(token_score), Verb(token_mix)
_NSEP = Verb(nsep_score), Verb(nsep_mix)


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
        return kind.name.upper() in BLOCK_DECODERS
    return isinstance(kind, NSep)


@lru_cache(maxsize=64)
def page_verbs(kind: KVFormat, page_tokens: int, head_dim: int) -> PageVerbs:
    """The verbs of a supported format, compiled on first use."""
    if isinstance(kind, TokenFormat):
        score, mix = _TOKEN
        decoder = BLOCK_DECODERS[kind.name.upper()].address
        values = -(-head_dim // kind.block) * kind.block
        parameters = (decoder, kind.row_nbytes(head_dim), values)
    else:
        assert isinstance(kind, NSep)
        score, mix = _NSEP
        parameters = (kind.codes_nbytes(page_tokens, head_dim), 0, 0)
    nbytes = kind.page_nbytes(page_tokens, head_dim)
    return PageVerbs(score.address, mix.address, nbytes, parameters)


def scratch_nbytes(rows: int, head_dim: int, page_tokens: int) -> int:
    """Bytes that any verb may need for `rows` query rows."""
    wide = -(-head_dim // 32) * 32
    queries = 4 * rows * (wide + 16) + 64 * padded_dim(head_dim)
    weights = 4 * rows * page_tokens + 64 * _MIX_TOKENS
    return max(4 * _BLOCK * wide, queries, weights) + 64
