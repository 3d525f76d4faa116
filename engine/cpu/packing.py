"""From a file's rows to groups of 16 lanes: lossless, by the team, a group per item."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from engine.checkpoint import Tensor
from engine.cpu.jit import Verb, call, field
from engine.cpu.layouts import LANES, LAYOUTS, SET
from engine.cpu.memory import Arena
from engine.cpu.planes import gather_steps, pack_set
from engine.cpu.split import SPLITTERS
from engine.cpu.team import Program, Team

_LONGEST = 256  # columns of the largest block: the codes of 16 lanes wait in 4 KB


(
    _SPLITTER, _SOURCE, _ROW_NBYTES, _ROWS, _COLUMNS, _TARGET, _GROUP_NBYTES, _SCRATCH,
    _SCRATCH_NBYTES, _BITS, _BLOCK, _BLOCK_NBYTES, _UNIT_NBYTES, _SCALES, _MINIMA, _D, _DMIN,
    _WIDTH,
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
    width = field(arguments, _WIDTH)
    for b in range(columns // block):
        unit = target + b * field(arguments, _UNIT_NBYTES)
        for lane in range(LANES):
            row = group * LANES + lane
            if row >= rows:
                break
            call(
                field(arguments, _SPLITTER),
                (
                    source + row * row_nbytes + b * field(arguments, _BLOCK_NBYTES),
                    codes + lane * _LONGEST,
                    unit + field(arguments, _SCALES) + width * lane,
                    unit + field(arguments, _MINIMA) + width * lane,
                    unit + field(arguments, _D) + 2 * lane,
                    unit + field(arguments, _DMIN) + 2 * lane,
                ),
            )
        for s in range(block // SET):
            gather_steps(codes + SET * s, _LONGEST, steps)
            pack_set(steps, unit + 64 * bits * s, bits)


_PACK_GROUP = Verb(_pack_group)


def pack(tensor: Tensor, team: Team, arena: Arena) -> np.ndarray:
    """uint8 [groups, group bytes] of a matrix whose type has a layout."""
    layout = LAYOUTS[tensor.type]
    rows, columns = tensor.shape
    groups, nbytes = -(-rows // LANES), layout.group_nbytes(columns)
    packed = arena.take((groups, nbytes))
    scratch = np.zeros((team.threads, LANES * _LONGEST + 512), np.uint8)
    source = np.ascontiguousarray(tensor.data).reshape(rows, -1)
    program = Program()
    program.add(
        _PACK_GROUP, groups,
        SPLITTERS[tensor.type].address, source.ctypes.data, source.shape[1], rows, columns,
        packed.ctypes.data, nbytes, scratch.ctypes.data, scratch.shape[1],
        layout.bits, layout.block, layout.block_nbytes, layout.unit_nbytes,
        *accumulate(layout.parts[:-1]), 1 if layout.super else 2,
    )  # fmt: skip
    team.run(program.table())
    return packed
