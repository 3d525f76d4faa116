"""Every vector primitive does to each lane what NumPy does to each element."""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import kernel
from engine.cpu.simd import (
    address_of,
    bitcast,
    convert,
    f16x16,
    f32x16,
    f64x16,
    fma,
    i8x16,
    i32x16,
    iota,
    load,
    load_f16,
    load_f32,
    load_u8,
    load_u16,
    load_u32,
    maximum,
    minimum,
    reduce_add,
    reduce_max,
    rint,
    splat,
    store,
    store_f16,
    store_f32,
    store_f64,
    store_u8,
    store_u16,
    store_u32,
    u8x16,
    u16x16,
    u32x16,
    zeros,
)

RNG = np.random.default_rng(2)
X = (RNG.standard_normal(16) * 100).astype(np.float32)
Y = np.concatenate([RNG.standard_normal(14), [0.5, -2.5]]).astype(np.float32)
BYTES = RNG.integers(0, 256, 64, dtype=np.uint8)
WORDS = np.array([0, 1, 2**31, 2**32 - 1, *RNG.integers(0, 2**32, 12)], np.uint32)


@kernel
def _float_operators(x, y, out):
    a, b = load(f32x16, address_of(x)), load(f32x16, address_of(y))
    to = address_of(out)
    store(to, a + b)
    store(to + 64, a - b)
    store(to + 128, a * b)
    store(to + 192, a / b)
    store(to + 256, fma(a, b, a))
    store(to + 320, maximum(a, b))
    store(to + 384, minimum(a, b))
    store(to + 448, rint(a))
    store(to + 512, a * np.float32(3) - np.float32(0.5))


def test_float_operators_are_numpys() -> None:
    x, out = X.copy(), np.zeros((9, 16), np.float32)
    x[:5] = [0.5, 1.5, 2.5, -0.5, -1.5]  # ties of rint
    _float_operators(x, Y, out)
    fused = (x.astype(np.float64) * Y + x).astype(np.float32)
    want = [x + Y, x - Y, x * Y, x / Y, fused, np.maximum(x, Y), np.minimum(x, Y), np.rint(x)]
    # LLVM may contract the last line into a fused operation only if it was told so; it was not
    want.append(x * np.float32(3) - np.float32(0.5))
    np.testing.assert_array_equal(out, np.array(want))


@kernel
def _double_operators(x, y, out):
    a, b = load(f64x16, address_of(x)), load(f64x16, address_of(y))
    to = address_of(out)
    store(to, a + b * np.float64(0.1))
    store(to + 128, a / b)
    store(to + 256, maximum(rint(a), minimum(a, b)))
    store(to + 384, convert(f64x16, convert(f32x16, a)))
    store_f64(to + 512, reduce_add(a))


def test_double_operators_are_numpys() -> None:
    x, y = X.astype(np.float64) / 3, Y.astype(np.float64) / 7
    out, total = np.zeros((5, 16)), x
    _double_operators(x, y, out)
    want = [x + y * 0.1, x / y, np.maximum(np.rint(x), np.minimum(x, y)), np.float32(x)]
    np.testing.assert_array_equal(out[:4], np.array(want))
    while len(total) > 1:
        total = total[: len(total) // 2] + total[len(total) // 2 :]
    assert out[4, 0] == total[0]


@kernel
def _word_operators(x, y, unsigned, signed):
    a, b = load(u32x16, address_of(x)), load(u32x16, address_of(y))
    to = address_of(unsigned)
    store(to, a + b)
    store(to + 64, a - b)
    store(to + 128, a * b)
    store(to + 192, a & b)
    store(to + 256, a | b)
    store(to + 320, a ^ b)
    store(to + 384, a << 5)
    store(to + 448, a >> 5)
    store(to + 512, a >> (b & 31))
    c, d = load(i32x16, address_of(x)), load(i32x16, address_of(y))
    to = address_of(signed)
    store(to, c + d)
    store(to + 64, c - d)
    store(to + 128, c * d)
    store(to + 192, c >> 5)


def test_word_operators_wrap_and_shift_as_numpys() -> None:
    other = WORDS[::-1].copy()
    unsigned, signed = np.zeros((9, 16), np.uint32), np.zeros((4, 16), np.int32)
    _word_operators(WORDS, other, unsigned, signed)
    x, y = WORDS, other
    want = [x + y, x - y, x * y, x & y, x | y, x ^ y, x << 5, x >> 5, x >> (y & 31)]
    np.testing.assert_array_equal(unsigned, np.array(want))
    i, j = x.view(np.int32), y.view(np.int32)
    np.testing.assert_array_equal(signed, np.array([i + j, i - j, i * j, i >> 5]))


@kernel
def _byte_operators(x, out):
    a, b = load(u8x16, address_of(x)), load(u8x16, address_of(x) + 16)
    to = address_of(out)
    store(to, a + b)
    store(to + 16, a & 15)
    store(to + 32, a >> 4)
    store(to + 48, a << 3)
    store(to + 64, a | b)
    c = load(i8x16, address_of(x))
    store(to + 80, c >> 2)


def test_byte_operators_stay_in_their_lane() -> None:
    out = np.zeros((6, 16), np.uint8)
    _byte_operators(BYTES, out)
    a, b = BYTES[:16], BYTES[16:32]
    arithmetic = (a.view(np.int8) >> 2).view(np.uint8)
    np.testing.assert_array_equal(out, [a + b, a & 15, a >> 4, a << 3, a | b, arithmetic])


@kernel
def _conversions(raw, f, ints, halves, out):
    source, to = address_of(raw), address_of(out)
    store(to, convert(f32x16, load(u8x16, source)))
    store(to + 64, convert(f32x16, load(i8x16, source)))
    store(to + 128, convert(f32x16, load(f16x16, address_of(halves))))
    store(to + 192, convert(f32x16, load(i32x16, source)))
    store(to + 256, convert(f32x16, load(u32x16, source)))
    to = address_of(ints)
    store(to, convert(i32x16, load(i8x16, source)))
    store(to + 64, convert(u32x16, load(u8x16, source)))
    store(to + 128, convert(u32x16, load(u16x16, source)))
    store(to + 192, convert(i32x16, load(f32x16, address_of(f))))
    store(to + 256, bitcast(i32x16, load(f32x16, address_of(f))))
    store(address_of(halves) + 32, convert(f16x16, load(f32x16, address_of(f))))
    store(address_of(halves) + 64, convert(u8x16, load(u32x16, source)))


def test_conversions_are_numpys() -> None:
    halves = np.zeros(48, np.float16)
    halves[:16] = [0, 1, -1, 65504, -65504, 2**-24, -(2**-24), 1e-5, 0.1, 3, 7, 9, 1e3, -0.5, 2, 4]
    out, ints = np.zeros((5, 16), np.float32), np.zeros((5, 16), np.int32)
    _conversions(BYTES, X, ints, halves.view(np.uint8), out)
    u8, words = BYTES[:16], BYTES.view(np.uint32)
    i8, u16 = u8.view(np.int8), BYTES[:32].view(np.uint16)
    want = [u8, i8, halves[:16], words.view(np.int32), words]
    np.testing.assert_array_equal(out, np.array([w.astype(np.float32) for w in want]))
    want = [i8, u8, u16, np.trunc(X), X.view(np.int32)]
    np.testing.assert_array_equal(ints, np.array([w.astype(np.int32) for w in want]))
    np.testing.assert_array_equal(halves[16:32], X.astype(np.float16))
    np.testing.assert_array_equal(halves[32:40].view(np.uint8), words.astype(np.uint8))


@kernel
def _constants(out, ints):
    to = address_of(out)
    store(to, splat(f32x16, np.float32(1.25)))
    store(to + 64, splat(f32x16, 3))
    store(to + 128, zeros(f32x16))
    store(address_of(ints), iota(u32x16))
    store(address_of(ints) + 64, splat(u32x16, -1))


def test_splat_zeros_and_iota_fill_every_lane() -> None:
    out, ints = np.ones((3, 16), np.float32), np.zeros((2, 16), np.uint32)
    _constants(out, ints)
    np.testing.assert_array_equal(out, np.repeat(np.float32([[1.25], [3], [0]]), 16, axis=1))
    np.testing.assert_array_equal(ints, [np.arange(16), np.full(16, 2**32 - 1)])


@kernel
def _reductions(x, words):
    a = load(f32x16, address_of(x))
    return reduce_add(a), reduce_max(a), reduce_add(load(u32x16, address_of(words)))


def test_reductions_run_over_a_fixed_tree_of_halves() -> None:
    total, highest, wrapped = _reductions(X, WORDS)
    tree = X
    while tree.size > 1:
        tree = tree[: tree.size // 2] + tree[tree.size // 2 :]
    assert np.float32(total) == tree[0]
    assert highest == X.max()
    assert np.uint32(wrapped) == WORDS.sum(dtype=np.uint32)


@kernel
def _copy_scalars(source, target):
    store_u8(target, load_u8(source))
    store_u8(target + 1, load_u8(source + 1))
    store_u16(target + 2, load_u16(source + 2))
    store_u32(target + 5, load_u32(source + 5))  # no alignment is needed
    store_f16(target + 9, load_f16(source + 9))
    store_f32(target + 11, load_f32(source + 11))


def test_scalars_round_trip_at_odd_addresses() -> None:
    source, target = np.zeros(16, np.uint8), np.zeros(16, np.uint8)
    source[:9] = BYTES[:9]
    source[9:11] = np.frombuffer(np.float16(-0.3).tobytes(), np.uint8)
    source[11:15] = np.frombuffer(np.float32(1e-30).tobytes(), np.uint8)
    _copy_scalars(source.ctypes.data, target.ctypes.data)
    source[4] = 0  # a byte that nothing copies
    np.testing.assert_array_equal(target, source)


@kernel
def _narrow(x, out):
    for i in range(x.shape[0]):
        store_f16(address_of(out) + 2 * i, x[i])


def test_storing_a_half_rounds_to_nearest_even() -> None:
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 3 * 2**-25, 65504, -0.1], np.float32)
    out = np.zeros(6, np.float16)
    _narrow(x, out.view(np.uint16))
    np.testing.assert_array_equal(out, x.astype(np.float16))


@kernel
def _pair_by_branch(source, j):
    if j < 4:
        return load_u8(source + j) & 63, load_u8(source + j + 4) & 63
    return load_u8(source + j + 4) & 15, load_u8(source + j + 4) >> 4


@kernel
def _inlined_pairs(source, target):
    for j in range(8):
        a, b = _pair_by_branch(source, j)
        for part in range(2):
            store_u8(target + 4 * j + 2 * part, a)
            store_u8(target + 4 * j + 2 * part + 1, b)


def test_inlined_access_at_offset_zero_is_not_taken_for_a_null_pointer() -> None:
    # The caller sees the callee as base + j rewritten to a pointer j with an offset.  Without the
    # attribute in simd.pointer, j = 0 makes it undefined behaviour and this kernel crashes.
    out = np.zeros((8, 2, 2), np.uint8)
    _inlined_pairs(BYTES.ctypes.data, out.ctypes.data)
    low = [(BYTES[j] & 63, BYTES[j + 4] & 63) for j in range(4)]
    high = [(BYTES[j + 4] & 15, BYTES[j + 4] >> 4) for j in range(4, 8)]
    np.testing.assert_array_equal(out, np.array([low + high] * 2).swapaxes(0, 1))
