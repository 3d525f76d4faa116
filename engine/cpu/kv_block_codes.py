"""Codes of token formats as units of bytes: what `engine.cpu.kv_blocks` multiplies.

A row is taken in blocks of 32 channels, whose codes are unsigned bytes; a value is
d (code - middle), or m + d code.  Two verbs per format, `turn` and `interleave`, unpack rows of
tokens into the units that `engine.cpu.kv_bytes` describes:

    verb(rows, count, row_nbytes, blocks, stride, units, headers, ahead)

for `count` rows from `rows` on; those `ahead` bytes further are asked for.  What has a d of its
own, a block or the row, begins with d and m in float16; in hqq all d stand in front of all m.  They
become words [blocks or 1, CHUNK] at `headers`.  `turn` writes a unit per 16 tokens, `stride` bytes
apart: 4 channels per line of 64 bytes.  `interleave` writes two units per block, `stride` bytes
apart: 4 tokens per line.  Behind the last token are copies of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from llvmlite import ir

from engine.cpu.deferred import intrinsic
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_bytes import interleave, turn
from engine.cpu.kv_rows import WIDTHS
from engine.cpu.lookup import look_up_bytes
from engine.cpu.simd import (
    address_of,
    bitcast,
    iota,
    load,
    load_i64,
    load_u16,
    load_u32,
    prefetch,
    splat,
    store_u32,
    u8x16,
    u8x32,
    u32x8,
    u64x4,
    zeros,
)
from engine.kv.format import TokenFormat
from engine.kv.formats.hqq import HqqFormat
from engine.kv.formats.iq4_nl import IQ4_NL, LEVELS
from engine.kv.formats.q8_0 import Q8_0
from engine.kv.formats.range_blocks import Q4_1, Q5_1
from engine.kv.formats.rows import RowFormat
from engine.kv.formats.scales import zero_code
from engine.kv.formats.signed_blocks import Q4_0, Q5_0, Q6_0

CHUNK = 128  # tokens that are unpacked at a time
_LEVELS = np.tile((LEVELS + 128).astype(np.uint8), 2)


@intrinsic
def _twice(typing_context, half):
    """u8x16 and once more behind it."""

    def emit(context, builder, signature, args):
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 32), [i % 16 for i in range(32)])
        return builder.shuffle_vector(args[0], args[0], lanes)

    return u8x32(half), emit


@intrinsic
def _bit_bytes(typing_context, word):
    """Byte i: bit i of a word of 32 bits, 0 or 255."""

    def emit(context, builder, signature, args):
        narrow = builder.trunc(args[0], ir.IntType(32))
        bits = builder.bitcast(narrow, ir.VectorType(ir.IntType(1), 32))
        return builder.sext(bits, u8x32.llvm)

    return u8x32(word), emit


@intrinsic
def _four_words(typing_context, a, b, c, d):
    """u64x4 of four words."""

    def emit(context, builder, signature, args):
        found = ir.Constant(u64x4.llvm, ir.Undefined)
        for i, word in enumerate(args):
            found = builder.insert_element(found, word, ir.IntType(32)(i))
        return found

    return u64x4(a, b, c, d), emit


@inlined
def _block_codes(block, bits, start, levels):
    """The 32 codes of a ggml block as u8x32, `start` bytes behind it; see `formats.blocks`."""
    if bits == 8:
        return load(u8x32, block + start) ^ 128
    low = block + start + (0 if bits == 4 else 4 if bits == 5 else 8)
    nibbles = bitcast(u32x8, _twice(load(u8x16, low))) >> (iota(u32x8) & 4)
    codes = bitcast(u8x32, nibbles) & 15
    if levels:
        codes = look_up_bytes(load(u8x32, address_of(_LEVELS)), codes)
    elif bits == 5:
        codes = codes | (_bit_bytes(load_u32(block + start)) & 16)
    elif bits == 6:
        lanes = iota(u64x4)  # channels from 0, 8, 16 and 24 on: bits 0, 4, 2 and 6 of eight bytes
        upper = splat(u64x4, load_i64(block + start)) >> ((lanes & 2) + ((lanes & 1) << 2))
        codes = codes | ((bitcast(u8x32, upper) & 3) << 4)
    return codes


@inlined
def _eight(plane, width, i, eights):
    """A plane's parts of channels 8 i and on, one per byte, from bit 0; above them, anything."""
    step, per_line = i // eights, 8 // width
    line, shift = step // per_line, step % per_line * width
    return load_i64(plane + 8 * (line * eights + i % eights)) >> shift


@inlined
def _row_codes(codes, b, bits, eights):
    """Codes of channels 32 b and on of an int{b}row whose steps have 8 `eights` channels."""
    found, i = zeros(u8x32), 4 * b
    for width in WIDTHS:
        if bits & width:
            first = bits & (-2 * width)
            plane = codes + 8 * eights * first
            words = _four_words(
                _eight(plane, width, i, eights), _eight(plane, width, i + 1, eights),
                _eight(plane, width, i + 2, eights), _eight(plane, width, i + 3, eights),
            )  # fmt: skip
            found = found | ((bitcast(u8x32, words) & ((1 << width) - 1)) << first)
    return found


@inlined
def _take(rows, last, t, b, form, headers):
    """Codes of block b of token t as u8x32, its header written; `rows` are (address, bytes per
    row, ahead).  Behind the token `last`, unless that is -1, it is that one."""
    address, row_nbytes, ahead = rows
    bits, start, nbytes, levels, eights, group = form
    row = address + (t if last < 0 else min(t, last)) * row_nbytes
    prefetch(row + b * (32 if eights else nbytes) + ahead)
    if group:
        d = row + 32 * b // group * 2
        header = load_u16(d) | load_u16(d + start // 2) << 16
    else:
        header = load_u32(row + b * nbytes)
    store_u32(headers + 4 * (CHUNK * b + t), header)
    if eights:
        return _row_codes(row + start, b, bits, eights)
    return _block_codes(row + b * nbytes, bits, start, levels)


@inlined
def _turn_eight(rows, last, t, blocks, form, target, headers):
    for b in range(blocks):
        turn(
            _take(rows, last, t, b, form, headers),
            _take(rows, last, t + 1, b, form, headers),
            _take(rows, last, t + 2, b, form, headers),
            _take(rows, last, t + 3, b, form, headers),
            _take(rows, last, t + 4, b, form, headers),
            _take(rows, last, t + 5, b, form, headers),
            _take(rows, last, t + 6, b, form, headers),
            _take(rows, last, t + 7, b, form, headers),
            target + 512 * b,
        )


@inlined
def _interleave_four(rows, last, t, blocks, form, stride, target, headers):
    for b in range(blocks):
        first = target + 2 * b * stride
        interleave(
            _take(rows, last, t, b, form, headers),
            _take(rows, last, t + 1, b, form, headers),
            _take(rows, last, t + 2, b, form, headers),
            _take(rows, last, t + 3, b, form, headers),
            first,
            first + stride,
        )


@cache
def _verbs(*form: int) -> tuple[Verb, Verb]:
    """turn and interleave; `form`: bits of a code, bytes in front of the codes, bytes of a block,
    whether codes stand for iq4_nl's levels; in rows 0 bytes and a step's channels by 8, else 0;
    channels that share d and m, which are apart then, or 0."""

    def turn_rows(address, count, row_nbytes, blocks, stride, units, headers, ahead):
        rows, whole = (address, row_nbytes, ahead), count & ~7
        for t in range(0, whole, 8):
            target = units + t // 16 * stride + (t & 8) * 4
            _turn_eight(rows, -1, t, blocks, form, target, headers)
        if whole < count:
            target = units + whole // 16 * stride + (whole & 8) * 4
            _turn_eight(rows, count - 1, whole, blocks, form, target, headers)

    def interleave_rows(address, count, row_nbytes, blocks, stride, units, headers, ahead):
        rows, whole = (address, row_nbytes, ahead), count & ~3
        for t in range(0, whole, 4):
            _interleave_four(rows, -1, t, blocks, form, stride, units + 16 * t, headers)
        if whole < count:
            target = units + 16 * whole
            _interleave_four(rows, count - 1, whole, blocks, form, stride, target, headers)

    return Verb(turn_rows), Verb(interleave_rows)


@dataclass(frozen=True)
class Codes:
    """A format's unpackers, its middle code, whether values are m + d code, whether rows are
    blocks."""

    turn: int
    interleave: int
    middle: int
    ranged: bool
    whole: bool


# bits, bytes in front of the codes, bytes of a block, levels; the middle code; ranged
_BLOCKS = {
    Q8_0.name: (8, 2, 34, False, 128, False),
    Q6_0.name: (6, 2, 26, False, 32, False),
    Q5_1.name: (5, 4, 24, False, 16, True),
    Q5_0.name: (5, 2, 22, False, 16, False),
    Q4_1.name: (4, 4, 20, False, 8, True),
    Q4_0.name: (4, 2, 18, False, 8, False),
    IQ4_NL.name: (4, 2, 18, True, 128, False),
}


def codes_of(kind: TokenFormat, head_dim: int) -> Codes | None:
    """How the format's rows are unpacked, None if they are not."""
    if kind.name in _BLOCKS:
        *form, middle, ranged = _BLOCKS[kind.name]
        turned, interleaved = _verbs(*form, 0, 0)
    elif head_dim % 64 != 0:
        return None
    elif isinstance(kind, RowFormat):
        turned, interleaved = _verbs(kind.bits, kind.header_nbytes, 0, False, head_dim // 64, 0)
        middle, ranged = 1 << (kind.bits - 1) if kind.asym else zero_code(kind.bits), kind.asym
    elif isinstance(kind, HqqFormat):
        header, middle, ranged = 4 * kind.groups(head_dim), 1 << (kind.bits - 1), True
        form = kind.bits, header, 0, False, head_dim // 64, kind.group
        turned, interleaved = _verbs(*form)
    else:
        return None
    whole = isinstance(kind, RowFormat)
    return Codes(turned.address, interleaved.address, middle, ranged, whole)
