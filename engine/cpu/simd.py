"""SIMD vectors as ordinary Numba values.

A `Vector` is a Numba type whose data model is an LLVM vector, so that plain Python in a kernel
becomes the instruction sequence one would write by hand: `load(f32x16, a) * splat(f32x16,
s)` is one load, one broadcast and one multiplication.  Only generic LLVM operations are used; LLVM
splits or widens the vectors for whatever the host has (AVX-512, AVX2, NEON), so kernels are
portable.

Memory is addressed by int64 addresses.  Nothing is bounds-checked: the callers in this package are
the checked layer.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic, types

_LLVM: dict[str, Any] = {
    "i8": ir.IntType(8),
    "u8": ir.IntType(8),
    "i16": ir.IntType(16),
    "u16": ir.IntType(16),
    "i32": ir.IntType(32),
    "u32": ir.IntType(32),
    "i64": ir.IntType(64),
    "u64": ir.IntType(64),
    "f16": ir.HalfType(),
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
}
_SCALAR = {
    "i8": "int8",
    "u8": "uint8",
    "i16": "int16",
    "u16": "uint16",
    "i32": "int32",
    "u32": "uint32",
    "i64": "int64",
    "u64": "uint64",
    "f16": "float32",  # Numba has no half scalar on CPU: loads widen, stores narrow
    "f32": "float32",
    "f64": "float64",
}


def _scalar(element: str) -> Any:
    """The type of one element on its own."""
    return getattr(types, _SCALAR[element])


class Vector:
    """`lanes` elements of one kind; signedness is part of the type, as in NumPy's dtypes.  In
    kernels it is the class of such values, in signatures of intrinsics their type."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element, self.lanes = element, lanes

    @property
    def is_float(self) -> bool:
        return self.element[0] == "f"

    @property
    def bits(self) -> int:
        return int(self.element[1:])

    @property
    def llvm(self) -> Any:
        return ir.VectorType(_LLVM[self.element], self.lanes)

    @property
    def numba_type(self) -> Any:
        from engine.cpu.vector_type import VectorType

        return VectorType(self.element, self.lanes)

    @property
    def _numba_type_(self) -> Any:
        return types.TypeRef(self.numba_type)

    def __call__(self, *args: Any) -> Any:
        """The signature of a function that returns one."""
        from numba.core.typing.templates import signature

        return signature(self, *args)


u8x16, i8x16 = Vector("u8", 16), Vector("i8", 16)
u8x8, f32x8 = Vector("u8", 8), Vector("f32", 8)
u16x16, f16x16 = Vector("u16", 16), Vector("f16", 16)
u16x32 = Vector("u16", 32)
i32x16, u32x16, f32x16 = Vector("i32", 16), Vector("u32", 16), Vector("f32", 16)
f64x16 = Vector("f64", 16)
u8x32, u8x64, i8x64 = Vector("u8", 32), Vector("u8", 64), Vector("i8", 64)
u32x8, u64x4 = Vector("u32", 8), Vector("u64", 4)
i64x16, u64x16 = Vector("i64", 16), Vector("u64", 16)

_I32 = ir.IntType(32)


def pointer(builder: Any, address: Any) -> Any:
    # Numba links a compiled callee into its callers after code generation has rewritten the address
    # base + j as a pointer j with an offset; where j is then known to be 0, LLVM would take the
    # access for one through a null pointer and delete the code.  llvmlite does not list the
    # attribute that forbids this, hence set.add.
    set.add(builder.function.attributes, "null_pointer_is_valid")
    return builder.inttoptr(address, ir.PointerType())


def broadcast(builder: Any, vector: Vector, scalar: Any) -> Any:
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, vector.lanes), None)
    return builder.shuffle_vector(first, undefined, zeros)


@intrinsic
def load(typing_context, kind, address):
    """The vector `kind` at `address`, which needs no alignment."""
    vector = kind.instance_type

    def emit(context, builder, signature, args):
        return builder.load(pointer(builder, args[1]), typ=vector.llvm, align=1)

    return vector(kind, types.int64), emit


@intrinsic
def store(typing_context, address, value):
    def emit(context, builder, signature, args):
        builder.store(args[1], pointer(builder, args[0]), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, value), emit


def _scalar_load(element: str) -> Any:
    @intrinsic
    def scalar_load(typing_context, address):
        def emit(context, builder, signature, args):
            value = builder.load(pointer(builder, args[0]), typ=_LLVM[element], align=1)
            return builder.fpext(value, ir.FloatType()) if element == "f16" else value

        return _scalar(element)(types.int64), emit

    return scalar_load


load_u8, load_u16 = _scalar_load("u8"), _scalar_load("u16")
load_u32, load_i32, load_i64 = _scalar_load("u32"), _scalar_load("i32"), _scalar_load("i64")
load_f16, load_f32, load_f64 = _scalar_load("f16"), _scalar_load("f32"), _scalar_load("f64")


def _scalar_store(element: str) -> Any:
    @intrinsic
    def scalar_store(typing_context, address, value):
        def emit(context, builder, signature, args):
            stored = builder.fptrunc(args[1], _LLVM["f16"]) if element == "f16" else args[1]
            builder.store(stored, pointer(builder, args[0]), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, _scalar(element)), emit

    return scalar_store


store_u8, store_u16, store_u32 = _scalar_store("u8"), _scalar_store("u16"), _scalar_store("u32")
store_i64 = _scalar_store("i64")
store_f16, store_f32, store_f64 = _scalar_store("f16"), _scalar_store("f32"), _scalar_store("f64")


@intrinsic
def splat(typing_context, kind, scalar):
    """`scalar`, converted to the element type, in every lane."""
    vector = kind.instance_type

    def emit(context, builder, signature, args):
        value = context.cast(builder, args[1], signature.args[1], _scalar(vector.element))
        return broadcast(builder, vector, value)

    return vector(kind, scalar), emit


@intrinsic
def zeros(typing_context, kind):
    vector = kind.instance_type

    def emit(context, builder, signature, args):
        return ir.Constant(vector.llvm, None)

    return vector(kind), emit


@intrinsic
def iota(typing_context, kind):
    """0, 1, 2, ... by lane."""
    vector = kind.instance_type

    def emit(context, builder, signature, args):
        return ir.Constant(vector.llvm, list(range(vector.lanes)))

    return vector(kind), emit


@intrinsic
def bitcast(typing_context, kind, value):
    vector = kind.instance_type

    def emit(context, builder, signature, args):
        return builder.bitcast(args[1], vector.llvm)

    return vector(kind, value), emit


def _conversion(source: Vector, target: Vector) -> str:
    if source.is_float and target.is_float:
        return "fpext" if source.bits < target.bits else "fptrunc"
    if source.is_float:
        return "fptoui" if target.element[0] == "u" else "fptosi"
    if target.is_float:
        return "uitofp" if source.element[0] == "u" else "sitofp"
    if source.bits > target.bits:
        return "trunc"
    return "zext" if source.element[0] == "u" else "sext"


@intrinsic
def convert(typing_context, kind, value):
    """`value` lane by lane in another element type; floats to integers truncate toward zero."""
    vector = kind.instance_type

    def emit(context, builder, signature, args):
        return getattr(builder, _conversion(value, vector))(args[1], vector.llvm)

    return vector(kind, value), emit


def _binary(signed_op: str, unsigned_op: str, float_op: str) -> Any:
    @intrinsic
    def binary(typing_context, left, right):
        if not isinstance(left, Vector):
            return None

        def emit(context, builder, signature, args):
            x, y = args
            if not isinstance(signature.args[1], Vector):
                y = context.cast(builder, y, signature.args[1], _scalar(left.element))
                y = broadcast(builder, left, y)
            unsigned = left.element[0] == "u"
            op = float_op if left.is_float else unsigned_op if unsigned else signed_op
            return getattr(builder, op)(x, y)

        return left(left, right), emit

    return binary


OPERATORS = {
    operator.add: _binary("add", "add", "fadd"),
    operator.sub: _binary("sub", "sub", "fsub"),
    operator.mul: _binary("mul", "mul", "fmul"),
    operator.truediv: _binary("sdiv", "udiv", "fdiv"),
    operator.and_: _binary("and_", "and_", ""),
    operator.or_: _binary("or_", "or_", ""),
    operator.xor: _binary("xor", "xor", ""),
    operator.lshift: _binary("shl", "shl", ""),
    operator.rshift: _binary("ashr", "lshr", ""),
}


def _llvm_call(name: str) -> Any:
    def call(builder: Any, vector: Vector, args: Any) -> Any:
        kind = ir.FunctionType(vector.llvm, [vector.llvm] * len(args))
        full = f"llvm.{name}.v{vector.lanes}{vector.element}"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, full), args)

    return call


@intrinsic
def fma(typing_context, a, b, c):
    """a * b + c with one rounding."""

    def emit(context, builder, signature, args):
        return _llvm_call("fma")(builder, c, args)

    return c(c, c, c), emit


def _of_two(name: str) -> Any:
    @intrinsic
    def of_two(typing_context, a, b):
        def emit(context, builder, signature, args):
            return _llvm_call(name)(builder, a, args)

        return a(a, a), emit

    return of_two


maximum, minimum = _of_two("maxnum"), _of_two("minnum")


def select_larger(builder: Any, a: Any, b: Any) -> Any:
    """max(a, b) in one instruction instead of `maximum`'s four: b where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _of_one(name: str) -> Any:
    @intrinsic
    def of_one(typing_context, a):
        def emit(context, builder, signature, args):
            return _llvm_call(name)(builder, a, args)

        return a(a), emit

    return of_one


# the nearest integer, ties to even, and the next one, still floats
rint, ceil, sqrt = _of_one("rint"), _of_one("ceil"), _of_one("sqrt")


def _reduction(combine: Any) -> Any:
    @intrinsic
    def reduce(typing_context, value):
        def emit(context, builder, signature, args):
            rest, lanes = args[0], value.lanes
            # a fixed tree of halves: the order, and so the result, never changes
            while lanes > 1:
                lanes //= 2
                undefined = ir.Constant(rest.type, ir.Undefined)
                kind = ir.VectorType(_I32, lanes)
                low = ir.Constant(kind, list(range(lanes)))
                high = ir.Constant(kind, list(range(lanes, 2 * lanes)))
                half = Vector(value.element, lanes)
                rest = combine(
                    builder,
                    half,
                    builder.shuffle_vector(rest, undefined, low),
                    builder.shuffle_vector(rest, undefined, high),
                )
            return builder.extract_element(rest, _I32(0))

        return _scalar(value.element)(value), emit

    return reduce


reduce_add = _reduction(
    lambda builder, half, x, y: (builder.fadd if half.is_float else builder.add)(x, y)
)
reduce_max = _reduction(lambda builder, half, x, y: select_larger(builder, x, y))


@intrinsic
def swap_pairs(typing_context, value):
    """Lanes 1, 0, 3, 2, ..."""

    def emit(context, builder, signature, args):
        order = [lane ^ 1 for lane in range(value.lanes)]
        mask = ir.Constant(ir.VectorType(_I32, value.lanes), order)
        return builder.shuffle_vector(args[0], args[0], mask)

    return value(value), emit


@intrinsic
def address_of(typing_context, array):
    """The address of a NumPy array's first element."""

    def emit(context, builder, signature, args):
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), emit


def _prefetch(locality: int) -> Any:
    @intrinsic
    def prefetch(typing_context, address):
        """Ask for the cache line at `address`, which need not be mapped."""

        def emit(context, builder, signature, args):
            kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), _I32, _I32, _I32])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(function, [pointer(builder, args[0]), _I32(0), _I32(locality), _I32(1)])
            return context.get_dummy_value()

        return types.void(types.int64), emit

    return prefetch


# into the second-level cache, where many can be waited for, and into the first
prefetch, prefetch_first = _prefetch(2), _prefetch(3)
