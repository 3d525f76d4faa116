"""What sealing a page has in common for all page formats: its tokens as floats, codes as steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.cpu.jit import call, field, inlined, kernel
from engine.cpu.program import Program
from engine.cpu.simd import (
    convert,
    load,
    load_i64,
    load_u32,
    store,
    store_f32,
    store_u32,
    u8x16,
    u32x16,
    zeros,
)
from engine.memory import address


def addresses(program: Program, arrays: Sequence[np.ndarray]) -> int:
    """Where the addresses of the arrays, int64 each, stand while the program lives."""
    found = np.array([address(array) for array in arrays], np.int64)
    program.hold(found, *arrays)
    return address(found)


class Places(NamedTuple):
    """Where a `number` of pages uint8 [heads, bytes] are: the address of their addresses, int64
    each, which stay there while a program lives, and the bytes from one head to the next."""

    table: int
    number: int
    heads: int
    stride: int


def places(program: Program, pages: Sequence[np.ndarray]) -> Places:
    """Where these pages are, one at least, listed for the program."""
    return Places(addresses(program, pages), len(pages), len(pages[0]), pages[0].strides[0])


def tail_fields(tails: Places, pages: Places, scratch: np.ndarray) -> tuple[int, ...]:
    """Fields 1 to 7 of an entry that packs `tails` into `pages`, with a row of `scratch` for each
    thread; items are the heads of the first page, then of the next."""
    return (
        tails.table, tails.stride, pages.table, pages.stride,
        address(scratch), scratch.strides[0], tails.heads,
    )  # fmt: skip


@inlined
def tail_item(arguments, item, slot):
    """Addresses of a head's rows, its packed page and the thread's scratch."""
    page, head = item // field(arguments, 7), item % field(arguments, 7)
    rows = load_i64(field(arguments, 1) + 8 * page) + head * field(arguments, 2)
    packed = load_i64(field(arguments, 3) + 8 * page) + head * field(arguments, 4)
    return rows, packed, field(arguments, 5) + slot * field(arguments, 6)


@kernel
def row_stride(values):
    """float32 values from one decoded row to the next."""
    return (values + 15) & ~15


@kernel
def decode_rows(rows, tokens, row_nbytes, decoder, values, dim, target):
    """float32 rows [tokens, stride] with zeros behind dim."""
    for t in range(tokens):
        row = target + 4 * t * row_stride(values)
        call(decoder, (rows + t * row_nbytes, row, values))
        for c in range(dim, row_stride(values)):
            store_f32(row + 4 * c, np.float32(0))


@kernel
def key_step(codes, lanes, step):
    """A step of 16 tokens by 4 channels from codes uint8 [16, lanes]."""
    for i in range(16):
        store_u32(step + 4 * i, load_u32(codes + i * lanes))


@kernel
def value_step(codes, lanes, step):
    """A step of 16 channels by 4 tokens from codes uint8 [4, lanes]."""
    word = zeros(u32x16)
    for i in range(4):
        part = convert(u32x16, load(u8x16, codes + i * lanes))
        word = word | (part << (8 * i))
    store(step, word)
