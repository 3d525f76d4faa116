"""Blocks of float32 products held in registers, and the two ways to turn vectors into lanes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic, types
from engine.cpu.jit import inlined
from engine.cpu.simd import f32x16, pointer, prefetch, u16x32, u32x16

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def larger_magnitude(typing_context, top, value):
    """max(top, |value|) of f32x16 without NaN, in two instructions, not four."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(f32x16.llvm, [f32x16.llvm])
        fabs = cgutils.get_or_insert_function(builder.module, kind, "llvm.fabs.v16f32")
        magnitude = builder.call(fabs, [args[1]])
        return builder.select(builder.fcmp_ordered(">", magnitude, args[0]), magnitude, args[0])

    return f32x16(f32x16, f32x16), emit


@intrinsic
def sum_in_order(typing_context, start, values):
    """start + lane 0 + lane 1 ... of f32x16, added one after another."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), f32x16.llvm])
        name = "llvm.vector.reduce.fadd.v16f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return types.float32(types.float32, f32x16), emit


@intrinsic(prefer_literal=True)
def zero_sums(typing_context, n):
    """A tuple of n (a constant) f32x16 zeros."""
    count = n.literal_value
    kind = types.UniTuple(f32x16.numba_type, count)

    def emit(context, builder, signature, args):
        zero = ir.Constant(f32x16.llvm, None)
        return context.make_tuple(builder, kind, [zero] * count)

    return kind(n), emit


def _at(builder: Any, address: Any, index: int, stride: Any) -> Any:
    offset = builder.mul(_I64(index), stride)
    return pointer(builder, builder.add(address, offset))


def _splat(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(f32x16.llvm, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(u32x16.llvm, None))


def _products(broadcast: bool) -> Any:
    @intrinsic(prefer_literal=True)
    def products(typing_context, sums, left, left_stride, right, right_stride, rows):
        height = rows.literal_value
        breadth = sums.count // height

        def emit(context, builder, signature, args):
            totals, x, x_stride, y, y_stride, _ = args
            vector, scalar = f32x16.llvm, ir.FloatType()
            kind = ir.FunctionType(vector, [vector] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32")
            ys = [
                builder.load(_at(builder, y, j, y_stride), typ=vector, align=1)
                for j in range(breadth)
            ]
            found = []
            for i in range(height):
                at = _at(builder, x, i, x_stride)
                loaded = builder.load(at, typ=scalar if broadcast else vector, align=1)
                factor = _splat(builder, loaded) if broadcast else loaded
                for j in range(breadth):
                    before = builder.extract_value(totals, i * breadth + j)
                    found.append(builder.call(fma, [factor, ys[j], before]))
            return context.make_tuple(builder, sums, found)

        addresses = (types.int64,) * 4
        return sums(sums, *addresses, rows), emit

    return products


add_products = _products(False)
"""sums[i, j] + left[i] right[j] of `rows` (a constant) vectors at `left` by those at `right`."""

add_scaled = _products(True)
"""The same where `left` holds a float32 for every row instead of a vector."""


@intrinsic(prefer_literal=True)
def load_sums(typing_context, address, stride, rows, breadth):
    """A tuple of f32x16 [rows, breadth] (constants) from rows `stride` bytes apart."""
    height, columns = rows.literal_value, breadth.literal_value
    kind = types.UniTuple(f32x16.numba_type, height * columns)

    def emit(context, builder, signature, args):
        found = []
        for i in range(height):
            row = builder.add(args[0], builder.mul(_I64(i), args[1]))
            for j in range(columns):
                at = _at(builder, row, j, _I64(64))
                found.append(builder.load(at, typ=f32x16.llvm, align=1))
        return context.make_tuple(builder, kind, found)

    return kind(types.int64, types.int64, rows, breadth), emit


@intrinsic(prefer_literal=True)
def store_sums(typing_context, address, stride, sums, rows):
    """The inverse of `load_sums`."""
    columns = sums.count // rows.literal_value

    def emit(context, builder, signature, args):
        for i in range(sums.count):
            row = builder.add(args[0], builder.mul(_I64(i // columns), args[1]))
            value = builder.extract_value(args[2], i)
            builder.store(value, _at(builder, row, i % columns, _I64(64)), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, sums, rows), emit


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(u32x16.llvm, lanes))


def _load_16(builder: Any, kind: Any, address: Any, stride: Any) -> list[Any]:
    return [
        builder.load(_at(builder, address, i, stride), typ=kind.llvm, align=1) for i in range(16)
    ]


@intrinsic
def lane_sums(typing_context, address):
    """Lane i: the sum of the lanes of vector i of the 16 f32x16 at `address`."""

    def emit(context, builder, signature, args):
        found = _load_16(builder, f32x16, args[0], _I64(64))
        half = 8
        while len(found) > 1:
            # every vector holds 8 / half sums in parts; two become one with half as many parts
            first = [i // half * 2 * half + i % half for i in range(16)]
            second = [i + half for i in first]
            found = [
                builder.fadd(_shuffle(builder, a, b, first), _shuffle(builder, a, b, second))
                for a, b in zip(found[::2], found[1::2], strict=True)
            ]
            half //= 2
        return found[0]

    return f32x16(types.int64), emit


def _swap_lanes(builder: Any, rows: list[Any], s: int) -> None:
    """A step of transposing: bit s of the row's number changes places with that of the lane's."""
    lower = [i if i & s == 0 else 16 + i - s for i in range(16)]
    upper = [i + s if i & s == 0 else 16 + i for i in range(16)]
    for i in range(len(rows)):
        if i & s == 0:
            a, b = rows[i], rows[i + s]
            rows[i], rows[i + s] = _shuffle(builder, a, b, lower), _shuffle(builder, a, b, upper)


@intrinsic
def transpose(typing_context, source, stride, target):
    """32-bit words [16, 16] with rows `stride` bytes apart, transposed to rows of 64 bytes."""

    def emit(context, builder, signature, args):
        rows = _load_16(builder, u32x16, args[0], args[1])
        for s in (8, 4, 2, 1):
            _swap_lanes(builder, rows, s)
        for i, row in enumerate(rows):
            builder.store(row, _at(builder, args[2], i, _I64(64)), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


def _woven(kind: Any, run: int, width: int, upper: bool) -> Any:
    """Runs of `run` elements of a and b in turn, from one half of every `width` elements."""
    half = width // 2
    first = [g + half * upper + i for g in range(0, kind.lanes, width) for i in range(half)]
    lanes = [
        j + which * kind.lanes
        for i in range(0, len(first), run)
        for which in (0, 1)
        for j in first[i : i + run]
    ]

    @intrinsic
    def woven(typing_context, a, b):
        def emit(context, builder, signature, args):
            mask = ir.Constant(ir.VectorType(_I32, kind.lanes), lanes)
            return builder.shuffle_vector(args[0], args[1], mask)

        return kind(kind, kind), emit

    return woven


lower_pairs, upper_pairs = (_woven(u16x32, 1, 8, upper) for upper in (False, True))
"""Pairs (a[i], b[i]) of two u16x32, i in the lower or upper four of every eight: one instruction.
The order of 32-bit lanes is then that of `lower_quads`' arguments."""

lower_quads, upper_quads = (_woven(f32x16, 4, 16, upper) for upper in (False, True))
"""Of two f32x16, lanes 0-3 of the first, of the second, 4-7 of the first, ...; the first half and
the second half of that."""


@intrinsic
def store_folded(typing_context, source, target, stride, rows):
    """Row i = columns i + columns 8 + i of float32 [16, 16], for i < `rows` <= 8."""

    def emit(context, builder, signature, args):
        half, count = ir.VectorType(ir.FloatType(), 8), args[3]

        def joined(row: int, offset: int) -> Any:
            # with the row 8 further: what follows then stays inside halves
            base = builder.add(args[0], _I64(offset))
            a, b = (
                builder.load(_at(builder, base, i, _I64(64)), typ=half, align=1)
                for i in (row, row + 8)
            )
            return _shuffle(builder, a, b, list(range(16)))

        found = [builder.fadd(joined(i, 0), joined(i, 32)) for i in range(8)]
        for s in (4, 2, 1):
            _swap_lanes(builder, found, s)
        for i, row in enumerate(found):
            with builder.if_then(builder.icmp_signed("<", _I64(i), count)):
                builder.store(row, _at(builder, args[1], i, args[2]), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), emit


@inlined
def fetch(address, lines):
    """Ask for `lines` cache lines."""
    for i in range(lines):
        prefetch(address + 64 * i)
