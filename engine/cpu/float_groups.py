"""The verbs of `engine.cpu.groups` for matrices of floats, and how these are packed.

A group of f32 or f16 is [columns, 16 rows]; bf16 is in pairs like a panel, [sets, 16, 16 rows, 2].
Columns are padded with zeros to whole sets.  x is float32 for `dot`: products are exact.
"""

from __future__ import annotations

import numpy as np

from engine.checkpoint import Tensor
from engine.cpu.groups import AHEAD, GroupVerbs, fetch
from engine.cpu.jit import Verb, inlined
from engine.cpu.layouts import LANES, SET
from engine.cpu.memory import Arena
from engine.cpu.simd import (
    bitcast,
    convert,
    f16x16,
    f32x16,
    fma,
    load,
    load_f32,
    splat,
    store,
    u32x16,
    zeros,
)


@inlined
def _f32_pair(group, k, i):
    """Columns i and i + 16 of set k."""
    row = group + 64 * (SET * k + i)
    return load(f32x16, row), load(f32x16, row + 64 * 16)


@inlined
def _f16_pair(group, k, i):
    row = group + 32 * (SET * k + i)
    return convert(f32x16, load(f16x16, row)), convert(f32x16, load(f16x16, row + 32 * 16))


@inlined
def _bf16_pair(group, k, i):
    words = load(u32x16, group + 1024 * k + 64 * i)
    return bitcast(f32x16, words << 16), bitcast(f32x16, words & np.uint32(0xFFFF0000))


_KINDS = {"F32": 0, "F16": 1, "BF16": 2}


@inlined
def _pair(group, k, i, kind):
    if kind == 0:
        return _f32_pair(group, k, i)
    if kind == 1:
        return _f16_pair(group, k, i)
    return _bf16_pair(group, k, i)


def _verbs(kind: int) -> GroupVerbs:
    nbytes = 128 if kind == 0 else 64  # of two columns

    def dot(group, apart, x, columns, out):
        even, odd = zeros(f32x16), zeros(f32x16)
        other_even, other_odd = zeros(f32x16), zeros(f32x16)
        for k in range(columns // SET):
            for i in range(16):
                ahead = group + nbytes * (16 * k + i) + AHEAD
                for line in range(0, nbytes, 64):
                    fetch(ahead + line, ahead + apart + line)
                a, b = _pair(group, k, i, kind)
                c, d = _pair(group + apart, k, i, kind)
                address = x + 4 * (SET * k + i)
                first, second = load_f32(address), load_f32(address + 64)
                p, q = splat(f32x16, first), splat(f32x16, second)
                even, odd = fma(p, a, even), fma(q, b, odd)
                other_even, other_odd = fma(p, c, other_even), fma(q, d, other_odd)
        store(out, even + odd)
        store(out + 64, other_even + other_odd)

    def pairs(group, columns, first, n, target):
        for i in range(0, 1024 * n, 64):
            store(target + i, load(u32x16, group + 1024 * first + i))

    def floats(group, columns, first, n, target):
        for k in range(n):
            for i in range(16):
                a, b = _pair(group, first + k, i, kind)
                store(target + 2048 * k + 64 * i, a)
                store(target + 2048 * k + 64 * i + 1024, b)

    return GroupVerbs(Verb(dot), Verb(pairs), Verb(floats))


FLOAT_GROUPS = {name: _verbs(kind) for name, kind in _KINDS.items()}
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def pack_floats(tensor: Tensor, arena: Arena) -> np.ndarray:
    """uint8 [groups, group bytes] of a matrix of floats."""
    rows, columns = tensor.shape
    values = np.ascontiguousarray(tensor.data).view(_DTYPES[tensor.type]).reshape(rows, columns)
    groups, sets = -(-rows // LANES), -(-columns // SET)
    wide = np.zeros((groups * LANES, sets * SET), values.dtype)
    wide[:rows, :columns] = values
    packed = arena.take((groups, wide[0].nbytes * LANES))
    target = packed.view(values.dtype)
    lanes = wide.reshape(groups, LANES, sets, 2, 16)
    if tensor.type == "BF16":
        order, shape = (0, 2, 4, 1, 3), (groups, sets, 16, LANES, 2)
    else:
        order, shape = (0, 2, 3, 4, 1), (groups, sets, 2, 16, LANES)
    target.reshape(shape)[:] = lanes.transpose(order)
    return packed
