"""Packed codes as vectors: the bit planes of `engine.bits`, for weights and for pages alike."""

from __future__ import annotations

from engine.cpu.jit import inlined, kernel
from engine.cpu.simd import load, load_u32, store, store_u32, u32x16, zeros


@inlined
def _plane(codes, k, bits, width):
    """Step k's part in the plane of `width` bits: 64 bytes, from bit 0."""
    per_line, step = 8 // width, k & 7
    line = (k >> 3) * bits + (bits & (-2 * width)) + step // per_line
    part = load(u32x16, codes + 64 * line) >> (width * (step % per_line))
    return part & (((1 << width) - 1) * 0x01010101)


@inlined
def step_codes(codes, k, bits):
    """Step k of packed codes: 64 bytes as u32x16, lane i holding its four codes."""
    if bits == 8:
        return load(u32x16, codes + 64 * k)
    word = zeros(u32x16)
    if bits & 4:
        word = _plane(codes, k, bits, 4)
    if bits & 2:
        word = word | (_plane(codes, k, bits, 2) << (bits & 4))
    if bits & 1:
        word = word | (_plane(codes, k, bits, 1) << (bits & 6))
    return word


@inlined
def _pack_plane(steps, target, bits, width):
    per_line, first = 8 // width, bits & (-2 * width)
    mask = ((1 << width) - 1) * 0x01010101
    for line in range(width):
        packed = zeros(u32x16)
        for j in range(per_line):
            step = load(u32x16, steps + 64 * (line * per_line + j))
            packed = packed | (((step >> first) & mask) << (width * j))
        store(target + 64 * (first + line), packed)


@kernel
def pack_set(steps, target, bits):
    """Pack eight steps, bytes [8, 64] at `steps`, into the 64 * bits bytes of a set."""
    if bits == 8:
        _pack_plane(steps, target, bits, 8)
        return
    if bits & 4:
        _pack_plane(steps, target, bits, 4)
    if bits & 2:
        _pack_plane(steps, target, bits, 2)
    if bits & 1:
        _pack_plane(steps, target, bits, 1)


@kernel
def gather_steps(codes, stride, steps):
    """Codes of 16 lanes `stride` bytes apart, 32 bytes of each, as eight steps [8, 16 lanes, 4]."""
    for lane in range(16):
        for j in range(8):
            store_u32(steps + 64 * j + 4 * lane, load_u32(codes + lane * stride + 4 * j))
