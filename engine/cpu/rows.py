"""Rows of a matrix as float32: embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.checkpoint import Tensor
from engine.cpu.groups import GROUPS
from engine.cpu.jit import Verb, call, field
from engine.cpu.layouts import LANES, SET
from engine.cpu.matrix import Matrix
from engine.cpu.memory import Pool
from engine.cpu.packing import pack_rows
from engine.cpu.program import Program
from engine.cpu.simd import load_f32, load_i32, store_f32
from engine.memory import address


@dataclass(frozen=True)
class Table:
    """A matrix of which only rows are asked for: it stays in its file, unpacked."""

    tensor: Tensor


def _lookup(arguments, item, slot):
    """Item: a token's row.  Fields: ids int32, panel verb, data, group bytes, sets, columns, out,
    scratch, its bytes per thread."""
    row = np.int64(load_i32(field(arguments, 1) + 4 * item))
    source = field(arguments, 3) + row // LANES * field(arguments, 4)
    sets, columns = field(arguments, 5), field(arguments, 6)
    panel = field(arguments, 8) + slot * field(arguments, 9)
    call(field(arguments, 2), (source, SET * sets, 0, sets, panel))
    out = field(arguments, 7) + 4 * columns * item
    for i in range(columns):
        store_f32(out + 4 * i, load_f32(panel + 64 * i + 4 * (row % LANES)))


_LOOKUP = Verb(_lookup)


def rows(
    program: Program, pool: Pool, threads: int, w: Matrix | Table, ids: np.ndarray
) -> np.ndarray:
    """Rows ids int32 [T] of w as float32 [T, columns]."""
    if isinstance(w, Table):
        data, columns = pack_rows(program, pool, threads, w.tensor, ids), w.tensor.shape[1]
        verb = GROUPS[w.tensor.type].floats
        ids = np.arange(len(ids), dtype=np.int32) * LANES  # every group has one row, its first
        program.hold(ids)
    else:
        data, columns, verb = w.data, w.columns, w.verbs.floats
    out, sets = pool.take((len(ids), columns)), -(-columns // SET)
    memory = pool.take((threads, 2048 * sets), np.uint8)
    program.add(
        _LOOKUP, len(ids), address(ids), verb.address, address(data), data.shape[1], sets,
        columns, address(out), address(memory), 2048 * sets,
    )  # fmt: skip
    return out
