"""From a file's rows to groups of 16 lanes: lossless, by the team, a group per item."""

from __future__ import annotations

import numpy as np

from engine.checkpoint import Tensor
from engine.cpu.jit import Verb, call, field
from engine.cpu.layouts import LANES, LAYOUTS, SET
from engine.cpu.memory import aligned_zeros
from engine.cpu.planes import gather_steps, pack_set
from engine.cpu.split import SPLITTERS
from engine.cpu.team import Program, Team

_LONGEST = 256  # columns of the largest block: the codes of 16 lanes wait in 4 KB


(
    _SPLITTER, _SOURCE, _ROW_NBYTES, _ROWS, _COLUMNS, _TARGET, _GROUP_NBYTES, _SCRATCH,
    _SCRATCH_NBYTES, _BITS, _BLOCK, _BLOCK_NBYTES, _SCALES, _MINIMA, _D, _DMIN, _PER_BLOCK, _WIDTH,
) = range(1, 19)  # fmt: skip


def _pack_group(arguments, group, slot):
    """Item: one group."""
    rows, columns, block = (
        field(arguments, _ROWS), field(arguments, _COLUMNS), field(arguments, _BLOCK)
    )  # fmt: skip
    source, row_nbytes = field(arguments, _SOURCE), field(arguments, _ROW_NBYTES)
    target = field(arguments, _TARGET) + group * field(arguments, _GROUP_NBYTES)
    codes = field(arguments, _SCRATCH) + slot * field(arguments, _SCRATCH_NBYTES)
    steps, bits = codes + LANES * _LONGEST, field(arguments, _BITS)
    scales, minima = target + field(arguments, _SCALES), target + field(arguments, _MINIMA)
    d, dmin = target + field(arguments, _D), target + field(arguments, _DMIN)
    per_block, width = field(arguments, _PER_BLOCK), field(arguments, _WIDTH)
    for b in range(columns // block):
        for lane in range(LANES):
            row = group * LANES + lane
            if row >= rows:
                break
            call(
                field(arguments, _SPLITTER),
                (
                    source + row * row_nbytes + b * field(arguments, _BLOCK_NBYTES),
                    codes + lane * _LONGEST,
                    scales + width * (LANES * per_block * b + lane),
                    minima + width * (LANES * per_block * b + lane),
                    d + 2 * (LANES * b + lane),
                    dmin + 2 * (LANES * b + lane),
                ),
            )
        for s in range(block // SET):
            gather_steps(codes + SET * s, _LONGEST, steps)
            pack_set(steps, target + (b * (block // SET) + s) * 64 * bits, bits)


_PACK_GROUP = Verb(_pack_group)


def pack(tensor: Tensor, team: Team) -> np.ndarray:
    """uint8 [groups, group bytes] of a matrix whose type has a layout."""
    layout = LAYOUTS[tensor.type]
    rows, columns = tensor.shape
    groups, nbytes = -(-rows // LANES), layout.group_nbytes(columns)
    packed = aligned_zeros((groups, nbytes))
    scratch = np.zeros((team.threads, LANES * _LONGEST + 512), np.uint8)
    source = np.ascontiguousarray(tensor.data).reshape(rows, -1)
    end = layout.codes_nbytes(columns)
    scales = layout.scales_nbytes(columns)
    minima = scales if layout.minima else 0
    program = Program()
    program.add(
        _PACK_GROUP, groups,
        SPLITTERS[tensor.type].address, source.ctypes.data, source.shape[1], rows, columns,
        packed.ctypes.data, nbytes, scratch.ctypes.data, scratch.shape[1],
        layout.bits, layout.block, layout.block_nbytes,
        end, end + scales, end + scales + minima,
        end + scales + minima + layout.steps_nbytes(columns),
        layout.block // layout.sub, 1 if layout.super else 2,
    )  # fmt: skip
    team.run(program.table())
    return packed
