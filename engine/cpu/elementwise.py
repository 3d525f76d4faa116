"""Norms, rotations, activations: short float32 loops, recorded into programs.

Arrays are contiguous and their memory is readable up to whole vectors of 16 values.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import Verb, field, inlined, kernel
from engine.cpu.program import Program
from engine.cpu.simd import (
    f32x16,
    fma,
    load,
    load_f32,
    load_i64,
    reduce_add,
    splat,
    store,
    store_f32,
    swap_pairs,
    zeros,
)
from engine.cpu.vmath import vsigmoid, vtanh
from engine.memory import address

_VALUES = 1 << 12  # values of one item: some microseconds


@inlined
def _share(n, count, item):
    """The item's part of n values: start, stop, with `count` values per item."""
    return item * count, min(n, (item + 1) * count)


def _items(n: int, count: int) -> int:
    return -(-n // count)


@kernel
def _norm_row(source, weight, eps, target, n):
    whole = n & ~15
    squares = zeros(f32x16)
    for i in range(0, 4 * whole, 64):
        v = load(f32x16, source + i)
        squares = fma(v, v, squares)
    total = reduce_add(squares)
    for i in range(whole, n):
        total += load_f32(source + 4 * i) * load_f32(source + 4 * i)
    factor = np.float32(1) / np.float32(math.sqrt(total / np.float32(n) + eps))
    scale = splat(f32x16, factor)
    for i in range(0, 4 * whole, 64):
        store(target + i, load(f32x16, source + i) * scale * load(f32x16, weight + i))
    for i in range(whole, n):
        value = load_f32(source + 4 * i) * factor * load_f32(weight + 4 * i)
        store_f32(target + 4 * i, value)


def _rms_norm(arguments, item, slot):
    """Fields: source, target, weight, address of eps, rows, n, rows per item."""
    source, target = field(arguments, 1), field(arguments, 2)
    weight, eps, n = field(arguments, 3), load_f32(field(arguments, 4)), field(arguments, 6)
    first, last = _share(field(arguments, 5), field(arguments, 7), item)
    for r in range(first, last):
        _norm_row(source + 4 * r * n, weight, eps, target + 4 * r * n, n)


_RMS_NORM = Verb(_rms_norm)


def rms_norm(
    program: Program, x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray
) -> None:
    """out = x / rms(x) * weight over the last axis of x, weight [n]."""
    n = x.shape[-1]
    rows, count = x.size // n, max(1, _VALUES // n)
    constant = np.array([eps], np.float32)
    program.hold(constant)
    program.add(
        _RMS_NORM, _items(rows, count),
        address(x), address(out), address(weight), address(constant), rows, n, count,
    )  # fmt: skip


@inlined
def _rotate_half(x, cos, sin, pairs):
    """Pairs (i, i + pairs)."""
    whole = pairs & ~15
    for i in range(0, 4 * whole, 64):
        c, s = load(f32x16, cos + i), load(f32x16, sin + i)
        u, v = load(f32x16, x + i), load(f32x16, x + 4 * pairs + i)
        store(x + i, u * c - v * s)
        store(x + 4 * pairs + i, u * s + v * c)
    for i in range(4 * whole, 4 * pairs, 4):
        c, s = load_f32(cos + i), load_f32(sin + i)
        u, v = load_f32(x + i), load_f32(x + 4 * pairs + i)
        store_f32(x + i, u * c - v * s)
        store_f32(x + 4 * pairs + i, u * s + v * c)


@inlined
def _rotate_next(x, cos, sin, pairs):
    """Pairs (2 i, 2 i + 1); cos and sin are per channel, the sines of even channels negative."""
    whole = 2 * pairs & ~15
    for i in range(0, 4 * whole, 64):
        v = load(f32x16, x + i)
        store(x + i, v * load(f32x16, cos + i) + swap_pairs(v) * load(f32x16, sin + i))
    for i in range(4 * whole, 8 * pairs, 8):
        c, s = load_f32(cos + i), load_f32(sin + i + 4)
        u, v = load_f32(x + i), load_f32(x + i + 4)
        store_f32(x + i, u * c - v * s)
        store_f32(x + i + 4, u * s + v * c)


def _rope(arguments, item, slot):
    """Fields: x, tokens, heads, D, table, pairs, address of the first position, next, scratch of
    rows [2, 2 pairs] per thread, tokens per item."""
    heads, dim, pairs = field(arguments, 3), field(arguments, 4), field(arguments, 6)
    position, adjacent = load_i64(field(arguments, 7)), field(arguments, 8) != 0
    cos = field(arguments, 9) + 16 * pairs * slot
    sin = cos + 8 * pairs
    first, last = _share(field(arguments, 2), field(arguments, 10), item)
    for t in range(first, last):
        angles = field(arguments, 5) + 8 * pairs * (position + t)
        for i in range(pairs):
            c, s = load_f32(angles + 8 * i), load_f32(angles + 8 * i + 4)
            if adjacent:
                store_f32(cos + 8 * i, c)
                store_f32(cos + 8 * i + 4, c)
                store_f32(sin + 8 * i, -s)
                store_f32(sin + 8 * i + 4, s)
            else:
                store_f32(cos + 4 * i, c)
                store_f32(sin + 4 * i, s)
        for h in range(heads):
            x = field(arguments, 1) + 4 * dim * (t * heads + h)
            if adjacent:
                _rotate_next(x, cos, sin, pairs)
            else:
                _rotate_half(x, cos, sin, pairs)


_ROPE = Verb(_rope)


def rope_(
    program: Program,
    x: np.ndarray,
    table: np.ndarray,
    position: np.ndarray,
    adjacent: bool,
    scratch: np.ndarray,
) -> None:
    """Rotate x [T, heads, D] by table [positions, pairs, 2] from row position [0] on.

    `adjacent`: pairs are (2 i, 2 i + 1), else (i, i + pairs).  Scratch float32 [threads, 4 pairs].
    """
    tokens, heads, dim = x.shape
    count = max(1, _VALUES // (heads * dim))
    program.add(
        _ROPE, _items(tokens, count),
        address(x), tokens, heads, dim, address(table), table.shape[1],
        address(position), adjacent, address(scratch), count,
    )  # fmt: skip


@inlined
def _gelu_tanh(x):
    c = np.float32(math.sqrt(2 / math.pi))
    inner = fma(x * x, x * np.float32(0.044715), x) * c
    return x * (vtanh(inner) + np.float32(1)) * np.float32(0.5)


def _silu_product(arguments, item, slot):
    """Fields of all maps: a, b, out, n, address of a constant."""
    a, b, out = field(arguments, 1), field(arguments, 2), field(arguments, 3)
    first, last = _share(field(arguments, 4), _VALUES, item)
    for i in range(4 * first, 4 * last, 64):
        x = load(f32x16, a + i)
        store(out + i, x * vsigmoid(x) * load(f32x16, b + i))


def _gelu_product(arguments, item, slot):
    a, b, out = field(arguments, 1), field(arguments, 2), field(arguments, 3)
    first, last = _share(field(arguments, 4), _VALUES, item)
    for i in range(4 * first, 4 * last, 64):
        store(out + i, _gelu_tanh(load(f32x16, a + i)) * load(f32x16, b + i))


def _sum(arguments, item, slot):
    a, b, out = field(arguments, 1), field(arguments, 2), field(arguments, 3)
    first, last = _share(field(arguments, 4), _VALUES, item)
    for i in range(4 * first, 4 * last, 64):
        store(out + i, load(f32x16, a + i) + load(f32x16, b + i))


def _scaled(arguments, item, slot):
    a, out, factor = field(arguments, 1), field(arguments, 3), load_f32(field(arguments, 5))
    first, last = _share(field(arguments, 4), _VALUES, item)
    for i in range(4 * first, 4 * last, 64):
        store(out + i, load(f32x16, a + i) * factor)


def _capped(arguments, item, slot):
    a, out, cap = field(arguments, 1), field(arguments, 3), load_f32(field(arguments, 5))
    first, last = _share(field(arguments, 4), _VALUES, item)
    for i in range(4 * first, 4 * last, 64):
        store(out + i, vtanh(load(f32x16, a + i) * (np.float32(1) / cap)) * cap)


SILU_PRODUCT, GELU_PRODUCT, SUM = Verb(_silu_product), Verb(_gelu_product), Verb(_sum)
SCALED, CAPPED = Verb(_scaled), Verb(_capped)


def each(
    program: Program,
    verb: Verb,
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    constant: float = 0.0,
) -> None:
    """out = verb(a, b), value by value, for arrays of one shape; `out` may be one of them."""
    value = np.array([constant], np.float32)
    program.hold(value)
    program.add(
        verb, _items(a.size, _VALUES),
        address(a), address(b), address(out), a.size, address(value),
    )  # fmt: skip


def _copy(arguments, item, slot):
    """Fields: source, target, n."""
    source, target = field(arguments, 1), field(arguments, 2)
    first, last = _share(field(arguments, 3), _VALUES, item)
    for i in range(first, last):
        store_f32(target + 4 * i, load_f32(source + 4 * i))


_COPY = Verb(_copy)


def copy(program: Program, source: np.ndarray, target: np.ndarray) -> None:
    """target = source, float32 arrays of one size."""
    n = source.size
    program.add(_COPY, _items(n, _VALUES), address(source), address(target), n)
