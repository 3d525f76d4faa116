"""Encoders and decoders of `engine.kv.formats.hqq`: int64 addresses, n channels.

For each number of bits and group, compiled when first asked for; HQQ_ROWS encode many rows as
`engine.cpu.kv_append` has them.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.hqq_tuning import fit_groups
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_rows import eight_codes, one_code, pack_row
from engine.cpu.simd import convert, f32x8, fma, load, load_f16, splat, store, store_f32
from engine.kv.formats.hqq import HQQ


@inlined
def _encode(source, apart, target, row_nbytes, n, count, bits, group):
    """`count` rows of n values, `apart` bytes from one to the next."""
    groups, whole, top = (n + group - 1) // group, n // group, (1 << bits) - 1
    minima = 2 * groups
    if whole > 0:
        fit_groups(source, apart, target, row_nbytes, 0, count, whole, group, top, minima)
    if whole < groups:
        rest = source + 4 * group * whole
        fit_groups(rest, apart, target, row_nbytes, whole, count, 1, n % group, top, minima)
    for i in range(count):
        row = target + i * row_nbytes
        pack_row(source + i * apart, row + 2 * minima, n, bits, row, row + minima, group, 0)


def _encoder(bits: int, group: int) -> Verb:
    def encode(source, target, n):
        _encode(source, 0, target, 0, n, 1, bits, group)

    return Verb(encode)


def _rows_encoder(bits: int, group: int) -> Verb:
    def encode_rows(encoder, source, apart, target, row_nbytes, n, count):
        _encode(source, apart, target, row_nbytes, n, count, bits, group)

    return Verb(encode_rows)


def _decoder(bits: int, group: int) -> Verb:
    def decode(source, target, n):
        groups, length = (n + group - 1) // group, n // 8
        codes = source + 4 * groups
        for step in range(8):
            out = target + 4 * length * step
            if length < 8:
                for j in range(length):
                    store_f32(out + 4 * j, np.float32(one_code(codes, j, length, step, bits)))
            else:
                for start in range(0, length, 8):
                    j = min(start, length - 8)  # the last vector overlaps the one before
                    store(out + 4 * j, convert(f32x8, eight_codes(codes, j, length, step, bits)))
        for i in range(0, n, 8):
            g = i // group
            s = splat(f32x8, load_f16(source + 2 * g))
            m = splat(f32x8, load_f16(source + 2 * (groups + g)))
            store(target + 4 * i, fma(load(f32x8, target + 4 * i), s, m))

    return Verb(decode)


HQQ_ENCODERS = {f.name: _encoder(f.bits, f.group) for f in HQQ}
HQQ_ROWS = {f.name: _rows_encoder(f.bits, f.group) for f in HQQ}
HQQ_DECODERS = {f.name: _decoder(f.bits, f.group) for f in HQQ}
