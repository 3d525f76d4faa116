"""The rounds of `engine.kv.formats.hqq` for many groups at once: byte for byte the recipe's.

A round of one group waits for its own sum, so rounds go over all groups that still move, four at a
time.  A group has a record:

    | s | n s | z | bound of |z| | low | the last move | address of m | .. | y = (x - low) / s |

As long as |z| <= bound no code is beyond the least or the largest one, and need not be clamped.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from engine.cpu.deferred import intrinsic, types
from engine.cpu.gather import widened
from engine.cpu.jit import inlined, kernel
from engine.cpu.kv_rows import extremes, half, row_step
from engine.cpu.nearest import four_sums, from_nearest, limited
from engine.cpu.simd import (
    bitcast,
    convert,
    f32x8,
    f32x16,
    i32x16,
    load,
    load_f32,
    load_i32,
    load_i64,
    reduce_add,
    splat,
    store,
    store_f32,
    store_i64,
    zeros,
)
from engine.cpu.vmath import larger, smaller
from engine.kv.formats.floats import F16_MAX
from engine.kv.formats.hqq import OFFSET, POWER, ROUNDS, STILL

_AT_ONCE = 32  # groups
_LONGEST = 128  # values of a group
_LARGEST = np.float32(F16_MAX)
_STILL = int(STILL.view(np.int32))  # of positive floats, the order is that of their patterns
_MAGNITUDE = 0x7FFFFFFF
_S, _SUM_UNIT, _Z, _BOUND, _LOW, _MOVE, _AT, _Y = 0, 4, 8, 12, 16, 20, 24, 64
_SUMS = 8 * (_AT_ONCE + 4)  # behind the list of records
_RECORDS = _SUMS + 64
_ROOM_NBYTES = _RECORDS + (_AT_ONCE + 1) * (_Y + 4 * _LONGEST)


@intrinsic
def _room(typing_context):
    """The address of what `fit_groups` works in: on the stack."""

    def emit(context, builder, signature, args):
        with builder.goto_entry_block():  # cgutils.alloca_once would fill it with zeros
            room = builder.alloca(ir.ArrayType(ir.IntType(8), _ROOM_NBYTES))
        return builder.ptrtoint(room, ir.IntType(64))

    return types.int64(), emit


@inlined
def _record(room, i, n):
    """Record i of groups of n values."""
    return room + _RECORDS + i * (_Y + 4 * ((n + 15) & ~15))


@inlined
def _prepare(record, source, at, apart, n, top):
    """Make the record of n float32 values; store s, whose m is to lie `apart` bytes further.

    Returns whether there is something to tune.
    """
    low, high = extremes(source, n)
    s = row_step(at, high - low, top)
    inverse = np.float32(1) / s
    for i in range(0, n - 7, 8):
        store(record + _Y + 4 * i, (load(f32x8, source + 4 * i) - low) * inverse)
    if n & 8:
        store(record + _Y + 4 * n, zeros(f32x8))
    store_f32(record + _S, s)
    store_f32(record + _SUM_UNIT, s * np.float32(n))
    store_f32(record + _Z, np.float32(0))
    # half a level, less by what s was rounded down and by more than the error of y + z
    beyond = (high - low) * inverse - np.float32(top)
    bound = np.float32(0.4999) - max(beyond, np.float32(0))
    store_f32(record + _BOUND, bound)
    store_f32(record + _LOW, low)
    store_i64(record + _AT, at + apart)
    return s > 0


@inlined
def _moved(v, s):
    """What HQQ's shrinking takes off the errors of 16 values that are v levels off."""
    e = v * s
    size = bitcast(i32x16, e) & _MAGNITUDE
    limit = bitcast(f32x16, convert(i32x16, convert(f32x16, size) * POWER + OFFSET))
    return limited(e, limit)


@inlined
def _added(total, values, z, s, top, clamped):
    """`total` with what 16 values take off z, in levels times n s; nothing where s is 0."""
    v = values + z
    off = from_nearest(v)
    if clamped:
        off = smaller(larger(v - top, off), v)
    return total + _moved(off, s)


@inlined
def _range(record):
    return splat(f32x16, load_f32(record + _Z)), splat(f32x16, load_f32(record + _S))


@inlined
def _four_totals(a, b, c, d, n, top, sums, clamped):
    highest, t = splat(f32x16, np.float32(top)), zeros(f32x16)
    u, v, w, rest = t, t, t, n & 8
    (z, s), (z2, s2), (z3, s3), (z4, s4) = _range(a), _range(b), _range(c), _range(d)
    for i in range(_Y, _Y + 4 * (n - rest), 64):
        t = _added(t, load(f32x16, a + i), z, s, highest, clamped)
        u = _added(u, load(f32x16, b + i), z2, s2, highest, clamped)
        v = _added(v, load(f32x16, c + i), z3, s3, highest, clamped)
        w = _added(w, load(f32x16, d + i), z4, s4, highest, clamped)
    if rest != 0:
        i, lit = _Y + 4 * (n - rest), widened(splat(f32x8, np.float32(1)))
        t = _added(t, load(f32x16, a + i), z, s * lit, highest, clamped)
        u = _added(u, load(f32x16, b + i), z2, s2 * lit, highest, clamped)
        v = _added(v, load(f32x16, c + i), z3, s3 * lit, highest, clamped)
        w = _added(w, load(f32x16, d + i), z4, s4 * lit, highest, clamped)
    store(sums, four_sums(t, u, v, w))


@kernel
def _totals(a, b, c, d, n, top, sums):
    """Store sums of four records' n values as lanes 0, 4, 8 and 12."""
    _four_totals(a, b, c, d, n, top, sums, False)


@kernel
def _clamped_totals(a, b, c, d, n, top, sums):
    _four_totals(a, b, c, d, n, top, sums, True)


@kernel
def _total(record, n, top, sums):
    """The same for one record, and zeros for three that are idle."""
    highest, total, rest = splat(f32x16, np.float32(top)), zeros(f32x16), n & 8
    z, s = _range(record)
    store(sums, total)
    for i in range(_Y, _Y + 4 * (n - rest), 64):
        total = _added(total, load(f32x16, record + i), z, s, highest, True)
    if rest != 0:
        values = load(f32x16, record + _Y + 4 * (n - rest))
        lit = widened(splat(f32x8, np.float32(1)))
        total = _added(total, values, z, s * lit, highest, True)
    store_f32(sums, reduce_add(total))


@inlined
def _within(record):
    """Whether |z| <= bound."""
    return (load_i32(record + _Z) & _MAGNITUDE) <= load_i32(record + _BOUND)


@inlined
def _move(record, total):
    """Move z; returns whether it has to be moved again."""
    move = total / load_f32(record + _SUM_UNIT)
    store_f32(record + _Z, load_f32(record + _Z) - move)
    store_f32(record + _MOVE, move)
    return (load_i32(record + _MOVE) & _MAGNITUDE) > _STILL


@inlined
def _round(room, count, n, top):
    """One round of `count` groups, whose records are listed; returns how many stay in the list."""
    kept, moving, sums = 0, room, room + _SUMS
    for q in range(moving, moving + 8 * count, 32):
        a, b, c, d = load_i64(q), load_i64(q + 8), load_i64(q + 16), load_i64(q + 24)
        if q == moving + 8 * (count - 1):
            _total(a, n, top, sums)
        elif _within(a) & _within(b) & _within(c) & _within(d):
            _totals(a, b, c, d, n, top, sums)
        else:
            _clamped_totals(a, b, c, d, n, top, sums)
        for i, record in enumerate((a, b, c, d)):
            store_i64(moving + 8 * kept, record)
            kept += int(_move(record, load_f32(sums + 16 * i)))
    return kept


@inlined
def _list_idle(room, count, n):
    """Behind `count` groups list one that never moves, up to whole fours."""
    for i in range(count, count + 3):
        store_i64(room + 8 * i, _record(room, _AT_ONCE, n))


@inlined
def _tune(room, count, n, top):
    """Up to 20 rounds of `count` groups of n values, whose records are listed."""
    idle = _record(room, _AT_ONCE, n)
    for i in range(0, n, 8):
        store(idle + _Y + 4 * i, zeros(f32x8))
    if n & 8:
        store(idle + _Y + 4 * n, zeros(f32x8))
    for i, value in enumerate((1, 1, 0, 0)):  # s, n s, z, bound
        store_f32(idle + 4 * i, np.float32(value))
    for _ in range(ROUNDS):
        _list_idle(room, count, n)
        count = _round(room, count, n, top)
        if count == 0:
            break


@inlined
def _store_minimum(record):
    """Store a tuned group's m as float16."""
    s, z, low = load_f32(record + _S), load_f32(record + _Z), load_f32(record + _LOW)
    m = low + np.float32(0)  # never a negative zero
    if s > 0:
        m = max(low - s * z, min(low, -_LARGEST))
    half(load_i64(record + _AT), m)


@kernel
def fit_groups(source, apart, target, row_nbytes, first, count, groups, n, top, minima):
    """Store s and m of `count` rows' groups of n values, group `first` of the row and those behind.

    `minima` is how far the m lie behind the s.
    """
    room, row, g = _room(), 0, 0
    for start in range(0, count * groups, _AT_ONCE):
        some, listed = min(_AT_ONCE, count * groups - start), 0
        for i in range(some):
            record, at = _record(room, i, n), target + row * row_nbytes + 2 * (first + g)
            store_i64(room + 8 * listed, record)
            listed += int(_prepare(record, source + row * apart + 4 * n * g, at, minima, n, top))
            g += 1
            if g == groups:
                row, g = row + 1, 0
        _tune(room, listed, n, top)
        for i in range(some):
            _store_minimum(_record(room, i, n))
