"""Products of rows in planes with codes that lie unpacked in memory (`engine.cpu.kv_integers`), for
pages whose codes are not all of one kind: water-filled and kivi ones."""

from __future__ import annotations

from engine.cpu.dot import dot_bytes, four_bytes
from engine.cpu.jit import inlined
from engine.cpu.kv_floats import larger_magnitude
from engine.cpu.kv_integers import TOP, pair_products, row_factor, split_values, sums_stride
from engine.cpu.simd import f32x16, i32x16, load, reduce_add, store, u8x64, zeros


@inlined
def split_row(values, depth, planes, block):
    """Write the planes of float32 [depth]; returns their scale and the sum of 256 high + low.

    Rows without a value above 1e-30 become zeros.
    """
    top, total = zeros(f32x16), zeros(f32x16)
    for c in range(0, 4 * depth, 64):
        top = larger_magnitude(top, load(f32x16, values + c))
    factor, scale = row_factor(top, TOP)
    for c in range(0, depth, 16):
        total = split_values(load(f32x16, values + 4 * c), factor, planes + c, block * depth, total)
    return scale, reduce_add(total)


@inlined
def _add_unit(planes, low, depth, rows, codes, sums, low_sums, stride):
    """Sums of one unit without tiles: two rows at a time share the codes they load."""
    for i in range(0, rows, 2):
        j = min(i + 1, rows - 1)
        first, second = planes + i * depth, planes + j * depth
        a, b, c, d = zeros(i32x16), zeros(i32x16), zeros(i32x16), zeros(i32x16)
        for k in range(0, depth, 4):
            step = load(u8x64, codes + 16 * k)
            a = dot_bytes(a, step, four_bytes(first + k))
            b = dot_bytes(b, step, four_bytes(first + low + k))
            c = dot_bytes(c, step, four_bytes(second + k))
            d = dot_bytes(d, step, four_bytes(second + low + k))
        store(sums + stride * i, a)
        store(low_sums + stride * i, b)
        store(sums + stride * j, c)
        store(low_sums + stride * j, d)


@inlined
def products(planes, depth, block, rows, codes, unit_nbytes, units, sums, tiles):
    """int32 sums [2 block, 16 units] of a block's `rows` rows with units `unit_nbytes` apart.

    Units are taken in pairs, so an odd number of them needs room for one more.  `tiles`, a
    constant, says whether tile registers, configured by the caller, do the work.
    """
    stride, low = sums_stride(units), block * depth
    for unit in range(0, units, 2):
        first, target = codes + unit_nbytes * unit, sums + 64 * unit
        second = first + unit_nbytes
        if tiles:
            pair_products(planes, depth, block, first, second, target, stride)
        else:
            low_target = target + stride * block
            _add_unit(planes, low, depth, rows, first, target, low_target, stride)
            _add_unit(planes, low, depth, rows, second, target + 64, low_target + 64, stride)
