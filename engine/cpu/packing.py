"""From a file's rows to groups of 16 lanes: lossless, by the team, a group per item."""

from __future__ import annotations

import numpy as np

from engine.checkpoint import Tensor
from engine.cpu.jit import Verb, call
from engine.cpu.layouts import LANES, LAYOUTS, SET, Layout
from engine.cpu.planes import gather_steps, pack_set
from engine.cpu.simd import load_i64, store_i64
from engine.cpu.split import SPLITTERS
from engine.cpu.team import Team

_BLOCK = 256  # columns of the largest block: the codes of 16 lanes wait in 4 KB


def _pack_group(arguments, group, slot):
    """Item: one group.  Fields: splitter, source, row bytes, rows, columns, target, group bytes,
    scratch, scratch bytes, then bits, block, block bytes, bytes of codes, of scales, of minima, of d,
    scales per block, bytes per scale."""
    splitter, source, row_nbytes = field(arguments, 0), field(arguments, 1), field(arguments, 2)
    rows, columns = field(arguments, 3), field(arguments, 4)
    target = field(arguments, 5) + group * field(arguments, 6)
    codes = field(arguments, 7) + slot * field(arguments, 8)
    steps = codes + LANES * _BLOCK
    bits, block, block_nbytes = field(arguments, 9), field(arguments, 10), field(arguments, 11)
    scales = target + field(arguments, 12)
    minima = scales + field(arguments, 13)
    d = minima + field(arguments, 14)
    dmin = d + field(arguments, 15)
    per_block, width = field(arguments, 16), field(arguments, 17)
    for b in range(columns // block):
        for lane in range(LANES):
            row = group * LANES + lane
            if row >= rows:
                break
            call(
                splitter,
                (
                    source + row * row_nbytes + b * block_nbytes,
                    codes + lane * _BLOCK,
                    scales + width * (LANES * per_block * b + lane),
                    minima + width * (LANES * per_block * b + lane),
                    d + 2 * (LANES * b + lane),
                    dmin + 2 * (LANES * b + lane),
                ),
            )
        for s in range(block // SET):
            gather_steps(codes + SET * s, _BLOCK, steps)
            pack_set(steps, target + (b * (block // SET) + s) * 64 * bits, bits)


_PACK_GROUP = Verb(_pack_group)


def pack(tensor: Tensor, team: Team) -> np.ndarray:
    """uint8 [groups, group bytes] of a matrix whose type has a layout."""
    layout = LAYOUTS[tensor.type]
    rows, columns = tensor.shape
    groups, nbytes = -(-rows // LANES), layout.group_nbytes(columns)
    packed = aligned_zeros((groups, nbytes))
    scratch = np.zeros((team.threads, LANES * _BLOCK + 512), np.uint8)
    source = np.ascontiguousarray(tensor.data).reshape(rows, -1)
    scales = layout.block // layout.sub
    arguments = np.array(
        [
            groups,
            SPLITTERS[tensor.type].address, source.ctypes.data, source.shape[1], rows, columns,
            packed.ctypes.data, nbytes, scratch.ctypes.data, scratch.shape[1],
            layout.bits, layout.block, layout.block_nbytes,
            layout.codes_nbytes(columns), layout.scales_nbytes(columns),
            layout.scales_nbytes(columns) if layout.minima else 0, layout.steps_nbytes(columns),
            scales, 1 if layout.super else 2,
        ],
        np.int64,
    )  # fmt: skip
    team.run(_PACK_GROUP, arguments, groups)
    return packed


def unpack(packed: np.ndarray, layout: Layout, columns: int) -> dict[str, np.ndarray]:
    """The parts of packed groups in the order of rows and columns, for checks.

    `codes` uint8 [rows, columns]; `scales` and `minima` f16 or int8 [rows, columns / sub]; `d` and
    `dmin` f16 [rows, columns / 256]; absent parts are empty.
    """
    groups = packed.shape[0]
    sizes = [
        layout.codes_nbytes(columns),
        layout.scales_nbytes(columns),
        layout.scales_nbytes(columns) * layout.minima,
        layout.steps_nbytes(columns),
        layout.steps_nbytes(columns) * layout.minima,
    ]
    parts = np.split(packed, np.cumsum(sizes)[:-1], axis=1)
    steps = unpack_steps(parts[0], layout.bits, columns // 4, STEP_CODES)
    codes = steps.reshape(groups, -1, LANES, 4).swapaxes(1, 2).reshape(groups * LANES, columns)
    small = np.int8 if layout.super else np.float16
    kinds = (small, small, np.float16, np.float16)
    names = ("scales", "minima", "d", "dmin")
    found = {"codes": codes}
    for name, part, kind in zip(names, parts[1:], kinds, strict=True):
        values = np.ascontiguousarray(part).view(kind).reshape(groups, -1, LANES)
        found[name] = values.swapaxes(1, 2).reshape(groups * LANES, -1)
    return found
