"""Norms, rotations, activations: short float32 loops."""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import Verb, kernel
from engine.cpu.simd import address_of, f32x16, fma, load, load_i64, reduce_add, splat, store, zeros
from engine.cpu.team import Team
from engine.cpu.vmath import vsigmoid, vtanh

_BLOCK = 1 << 12  # values of one item: about 10 microseconds


@kernel
def _sum_squares(x, n):
    total = zeros(f32x16)
    for i in range(n // 16):
        v = load(f32x16, x + 64 * i)
        total = fma(v, v, total)
    return reduce_add(total)


@kernel
def rms_norm(x, weight, eps, out):
    """out = x / rms(x) * weight for the rows of x [rows, n], weight [n]."""
    rows, n = x.shape
    whole = n & ~15
    for r in range(rows):
        source, target = address_of(x) + 4 * r * n, address_of(out) + 4 * r * n
        total = _sum_squares(source, n)
        for i in range(whole, n):
            total += x[r, i] * x[r, i]
        factor = np.float32(1) / np.float32(math.sqrt(total / np.float32(n) + np.float32(eps)))
        scale = splat(f32x16, factor)
        for i in range(0, whole, 16):
            v = load(f32x16, source + 4 * i) * scale
            store(target + 4 * i, v * load(f32x16, address_of(weight) + 4 * i))
        for i in range(whole, n):
            out[r, i] = x[r, i] * factor * weight[i]


@kernel
def rope_(x, table, position, distance, step):
    """Rotate the pairs (i step, i step + distance) of every head of x [T, heads, D]."""
    for t in range(x.shape[0]):
        for h in range(x.shape[1]):
            for i in range(table.shape[1]):
                a, b = i * step, i * step + distance
                cos, sin = table[position + t, i, 0], table[position + t, i, 1]
                u, v = x[t, h, a], x[t, h, b]
                x[t, h, a] = u * cos - v * sin
                x[t, h, b] = u * sin + v * cos


def lanes(x: np.ndarray) -> np.ndarray:
    """x flat, padded with zeros to whole vectors of 16 if need be."""
    flat = x.reshape(-1)
    return flat if flat.size % 16 == 0 else np.pad(flat, (0, -flat.size % 16))


@kernel
def _silu(x):
    return x * vsigmoid(x)


@kernel
def _gelu_tanh(x):
    c = np.float32(math.sqrt(2 / math.pi))
    inner = fma(x * x, x * np.float32(0.044715), x) * c
    return x * (vtanh(inner) + np.float32(1)) * np.float32(0.5)


@kernel
def _glu_block(gate, up, out, start, stop, gelu):
    """Values start..stop, both multiples of 16."""
    for i in range(start, stop, 16):
        x = load(f32x16, gate + 4 * i)
        y = load(f32x16, up + 4 * i)
        if gelu:
            store(out + 4 * i, _gelu_tanh(x) * y)
        else:
            store(out + 4 * i, _silu(x) * y)


def _glu_item(arguments, item, slot):
    n = load_i64(arguments + 24)
    start, stop = item * _BLOCK, min(n, (item + 1) * _BLOCK)
    gate, up, out = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 16)
    _glu_block(gate, up, out, start, stop, load_i64(arguments + 32) != 0)


_GLU_ITEM = Verb(_glu_item)


def glu(gate: np.ndarray, up: np.ndarray, out: np.ndarray, gelu: bool, team: Team) -> None:
    """out = act(gate) * up for flat arrays whose length is a multiple of 16."""
    n = gate.size
    arguments = np.array([gate.ctypes.data, up.ctypes.data, out.ctypes.data, n, gelu], np.int64)
    team.run(_GLU_ITEM, arguments.ctypes.data, -(-n // _BLOCK))
