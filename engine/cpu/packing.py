"""From a file's rows to groups of 16 lanes: lossless, by the team, a group per item.

Matrices wait until many can be packed in one call, during which Python is free for other work.
The call gives the file's pages back as it goes: they never take much memory of their own.
"""

from __future__ import annotations

import mmap
from itertools import accumulate

import numpy as np

from engine.checkpoint import Tensor
from engine.cpu.atomics import advise
from engine.cpu.jit import Verb, call, field, kernel
from engine.cpu.layouts import LANES, LAYOUTS, SET
from engine.cpu.memory import Arena, Pool, file_pages
from engine.cpu.planes import gather_steps, pack_set
from engine.cpu.program import Program
from engine.cpu.simd import load_i32
from engine.cpu.split import SPLITTERS
from engine.cpu.team import Team
from engine.memory import address

_LONGEST = 256  # columns of the largest block: the codes of 16 lanes wait in 4 KB
_PART = 1 << 19  # bytes of a file that are an item
_RECORD = 5  # words
_MOST_WAITING = 1 << 30  # a second's work: for so long Ctrl-C goes unheard
_SCRATCH_SIZE = LANES * _LONGEST + 512  # and a set of steps


(
    _SPLITTER, _SOURCE, _ROW_NBYTES, _ROWS, _COLUMNS, _TARGET, _GROUP_NBYTES, _SCRATCH,
    _SCRATCH_NBYTES, _BITS, _BLOCK, _BLOCK_NBYTES, _UNIT_NBYTES, _SCALES, _MINIMA, _D, _DMIN,
    _WIDTH, _IDS,
) = range(1, 20)  # fmt: skip


@kernel
def _pack_lanes(arguments, source, lanes, target, slot):
    """The group at `target` from as many rows at `source` as there are `lanes`, up to 16."""
    columns, block = field(arguments, _COLUMNS), field(arguments, _BLOCK)
    codes = field(arguments, _SCRATCH) + slot * field(arguments, _SCRATCH_NBYTES)
    steps, bits = codes + LANES * _LONGEST, field(arguments, _BITS)
    width, row_nbytes = field(arguments, _WIDTH), field(arguments, _ROW_NBYTES)
    for b in range(columns // block):
        unit = target + b * field(arguments, _UNIT_NBYTES)
        for lane in range(lanes):
            call(
                field(arguments, _SPLITTER),
                (
                    source + lane * row_nbytes + b * field(arguments, _BLOCK_NBYTES),
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


def _pack_part(arguments, item, slot):
    """Item: some groups of a matrix, whose pages in the file the system may drop afterwards.  Field
    1: records (fields of the matrix, first group, groups, pages, their bytes), one per item."""
    record = field(arguments, 1) + 8 * _RECORD * item
    of_matrix, first = field(record, 0), field(record, 1)
    for group in range(first, first + field(record, 2)):
        source = field(of_matrix, _SOURCE) + group * LANES * field(of_matrix, _ROW_NBYTES)
        target = field(of_matrix, _TARGET) + group * field(of_matrix, _GROUP_NBYTES)
        lanes = min(LANES, field(of_matrix, _ROWS) - group * LANES)
        _pack_lanes(of_matrix, source, lanes, target, slot)
    if field(record, 4) > 0:
        advise(field(record, 3), field(record, 4), mmap.MADV_DONTNEED)


def _pack_row(arguments, item, slot):
    """Item: the row that the item's id names, alone in a group."""
    row = np.int64(load_i32(field(arguments, _IDS) + 4 * item))
    source = field(arguments, _SOURCE) + row * field(arguments, _ROW_NBYTES)
    target = field(arguments, _TARGET) + item * field(arguments, _GROUP_NBYTES)
    _pack_lanes(arguments, source, 1, target, slot)


_PACK_PART, _PACK_ROW = Verb(_pack_part), Verb(_pack_row)


class Packing:
    """Matrices that wait to be packed by `team`, into memory of `arena`."""

    def __init__(self, team: Team, arena: Arena) -> None:
        self.arena, self._team = arena, team
        self._scratch = np.zeros((team.threads, _SCRATCH_SIZE), np.uint8)
        self._records: list[tuple[int, ...]] = []
        self._keep: list[np.ndarray] = []
        self._waiting = 0

    def add(self, tensor: Tensor) -> np.ndarray:
        """uint8 [groups, group bytes] of a matrix whose type has a layout: its contents by `finish`
        at the latest."""
        rows, columns = tensor.shape
        groups = -(-rows // LANES)
        packed = self.arena.take((groups, LAYOUTS[tensor.type].group_nbytes(columns)))
        source = np.ascontiguousarray(tensor.data)
        of_matrix = np.array((0, *_fields(tensor, source, packed, self._scratch)), np.int64)
        self._keep += (source, packed, of_matrix)
        step = max(1, _PART // (source.nbytes // rows * LANES))
        for first in range(0, groups, step):
            pages = file_pages(source, source[first * LANES : (first + step) * LANES])
            count = min(step, groups - first)
            self._records.append((address(of_matrix), first, count, *pages))
        self._waiting += source.nbytes
        if self._waiting > _MOST_WAITING:
            self.finish()
        return packed

    def finish(self) -> None:
        """Pack what waits: all of it in one entry, so that a thread that has to share its core
        holds the others up once, not at the end of every matrix."""
        if not self._records:
            return
        records, program = np.array(self._records, np.int64), Program()
        program.add(_PACK_PART, len(records), address(records))
        self._team.run(program.table())
        self._records, self._keep, self._waiting = [], [], 0


def pack_rows(
    program: Program, pool: Pool, threads: int, tensor: Tensor, ids: np.ndarray
) -> np.ndarray:
    """Groups uint8 [T, group bytes] of one row each, the rows ids int32 [T] of a matrix whose type
    has a layout."""
    nbytes = LAYOUTS[tensor.type].group_nbytes(tensor.shape[1])
    packed, scratch = (
        pool.take((len(ids), nbytes), np.uint8),
        pool.take((threads, _SCRATCH_SIZE), np.uint8),
    )
    fields = _fields(tensor, tensor.data, packed, scratch)
    program.add(_PACK_ROW, len(ids), *fields, address(ids))
    return packed


def _fields(
    tensor: Tensor, source: np.ndarray, packed: np.ndarray, scratch: np.ndarray
) -> tuple[int, ...]:
    """The fields of an entry for the rows `source` of a matrix."""
    layout = LAYOUTS[tensor.type]
    return (
        SPLITTERS[tensor.type].address, address(source), source.shape[1], len(source),
        tensor.shape[1], address(packed), packed.shape[1], address(scratch), scratch.shape[1],
        layout.bits, layout.block, layout.block_nbytes, layout.unit_nbytes,
        *accumulate(layout.parts[:-1]), 1 if layout.super else 2,
    )  # fmt: skip
