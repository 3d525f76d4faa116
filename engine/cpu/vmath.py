"""Vector exp and what is built on it."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from engine.cpu.deferred import intrinsic, types
from engine.cpu.jit import inlined, kernel
from engine.cpu.simd import (
    bitcast,
    convert,
    f16x16,
    f32x16,
    fma,
    i32x16,
    load,
    maximum,
    minimum,
    rint,
    select_larger,
    splat,
    u32x16,
)

_LOG2E = np.float32(1.4426950408889634)
# ln 2 in two parts, the first exact in a few bits, so that n ln 2 loses nothing
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)


@inlined
def halves(address):
    """The 16 float16 at an address as f32x16."""
    return convert(f32x16, load(f16x16, address))


@intrinsic
def larger(typing_context, a, b):
    """max(a, b) of a vector without NaN."""

    def emit(context, builder, signature, args):
        return select_larger(builder, *args)

    return a(a, a), emit


@intrinsic
def any_larger(typing_context, a, b):
    """Whether any lane of a is larger than b's."""

    def emit(context, builder, signature, args):
        mask = builder.bitcast(builder.fcmp_ordered(">", *args), ir.IntType(a.lanes))
        return builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0))

    return types.boolean(a, b), emit


@intrinsic
def smaller(typing_context, a, b):
    """min(a, b) of a vector without NaN."""

    def emit(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return a(a, a), emit


@intrinsic
def where_larger(typing_context, a, b, x, y):
    """x in lanes where a > b, else y."""

    def emit(context, builder, signature, args):
        a, b, x, y = args
        return builder.select(builder.fcmp_ordered(">", a, b), x, y)

    return x(a, a, x, x), emit


@kernel
def vexp(x):
    """exp of f32x16 to 2 ulp, clamped to exp(-87)..exp(88): never infinite, never subnormal.

    Cephes' expf: exp(x) = 2^n exp(r), |r| <= ln 2 / 2, and a polynomial of degree 5 for the rest.
    """
    x = minimum(maximum(x, splat(f32x16, _LOWEST)), splat(f32x16, _HIGHEST))
    n = rint(x * _LOG2E)
    r = fma(n, splat(f32x16, -_LN2_HIGH), x)
    r = fma(n, splat(f32x16, -_LN2_LOW), r)
    p = splat(f32x16, np.float32(1.9875691500e-4))
    p = fma(p, r, splat(f32x16, np.float32(1.3981999507e-3)))
    p = fma(p, r, splat(f32x16, np.float32(8.3334519073e-3)))
    p = fma(p, r, splat(f32x16, np.float32(4.1665795894e-2)))
    p = fma(p, r, splat(f32x16, np.float32(1.6666665459e-1)))
    p = fma(p, r, splat(f32x16, np.float32(5.0000001201e-1)))
    p = fma(p, r * r, r) + np.float32(1)
    power = bitcast(f32x16, (convert(i32x16, n) + 127) << 23)
    return p * power


_LEAST_POWER = np.float32(-100)
_ROUNDER = np.float32(1.5 * 2**23)  # x + this ends in the low bits of x rounded to an integer
# minimax for 2^r, |r| <= 1/2, relative, to 8e-8 before it is rounded; exact at 0
_POWERS = tuple(
    np.float32(c)
    for c in (1.3276472e-3, 9.6755415e-3, 5.5507133e-2, 2.4022120e-1, 6.9314697e-1, 1.0)
)


@kernel
def vexp2(x):
    """2^x of f32x16 x <= 127 to 3e-7, at least 2^-100: not subnormal, even times a half's value."""
    x = larger(x, splat(f32x16, _LEAST_POWER))
    shifted = x + _ROUNDER
    r = x - (shifted - _ROUNDER)
    p = splat(f32x16, _POWERS[0])
    p = fma(p, r, splat(f32x16, _POWERS[1]))
    p = fma(p, r, splat(f32x16, _POWERS[2]))
    p = fma(p, r, splat(f32x16, _POWERS[3]))
    p = fma(p, r, splat(f32x16, _POWERS[4]))
    p = fma(p, r, splat(f32x16, _POWERS[5]))
    return bitcast(f32x16, bitcast(u32x16, p) + (bitcast(u32x16, shifted) << 23))


@kernel
def vsigmoid(x):
    one = splat(f32x16, np.float32(1))
    return one / (one + vexp(x * np.float32(-1)))


@kernel
def vtanh(x):
    """2 sigmoid(2 x) - 1."""
    return vsigmoid(x * np.float32(2)) * np.float32(2) - np.float32(1)
