"""Products of quantized matrices with float32 activations.

A few tokens: each row is decoded into cache and multiplied with every token, so the weights are
read
once.  Many tokens: tiles of rows are decoded to float32 and multiplied by NumPy's BLAS, one tile
per
task.  Both use exact float32 activations, so a prompt and its token-by-token replay agree up to the
order of additions.  Rows and tiles do not depend on the number of threads, nor do results.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine.checkpoint import Tensor
from engine.cpu.blocks import BLOCK_DECODERS
from engine.cpu.jit import Verb, call, kernel
from engine.cpu.kquants import K_DECODERS
from engine.cpu.simd import (
    address_of,
    f32x16,
    fma,
    load,
    load_f32,
    load_i64,
    reduce_add,
    store_f32,
    zeros,
)
from engine.cpu.team import Team
from engine.reference import dequantize

DECODERS = {**BLOCK_DECODERS, **K_DECODERS}
FEW = 8  # tokens up to which decoding a row once and multiplying it in place is the faster way
TILE_BYTES = 1 << 20  # of decoded rows: a tile stays in the second-level cache
ITEM_VALUES = 1 << 15  # weights of one item: about 10 microseconds
_LANES = 32  # rows in scratch are padded to this many values


@dataclass(frozen=True)
class Matrix:
    """A weight matrix in its file's bytes, uint8 `data` [rows, row bytes], read in place."""

    type: str
    rows: int
    columns: int
    data: np.ndarray
    decoder: int

    @property
    def address(self) -> int:
        return self.data.ctypes.data

    @property
    def row_nbytes(self) -> int:
        return self.data.shape[1]


def matrix(tensor: Tensor) -> Matrix:
    """The matrix of a tensor; `gguf.quants` decodes the types without a kernel of ours."""
    rows, columns = tensor.shape
    if tensor.type in DECODERS:
        return Matrix(tensor.type, rows, columns, tensor.data, DECODERS[tensor.type].address)
    values = dequantize(tensor).view(np.uint8)
    return Matrix("F32", rows, columns, values, DECODERS["F32"].address)


@kernel
def _dot(a, b, n):
    """Sum of the n products of float32 values at a and b."""
    s0, s1 = zeros(f32x16), zeros(f32x16)
    whole = n & ~31
    for i in range(0, whole, 32):
        s0 = fma(load(f32x16, a + 4 * i), load(f32x16, b + 4 * i), s0)
        s1 = fma(load(f32x16, a + 4 * i + 64), load(f32x16, b + 4 * i + 64), s1)
    total = reduce_add(s0 + s1)
    for i in range(whole, n):
        total += load_f32(a + 4 * i) * load_f32(b + 4 * i)
    return total


def _multiply_rows(arguments, item, slot):
    """Item: a run of rows of y [T, N] = x [T, K] W^T, for few tokens."""
    decoder, weights = load_i64(arguments), load_i64(arguments + 8)
    row_nbytes, columns = load_i64(arguments + 16), load_i64(arguments + 24)
    rows, tokens = load_i64(arguments + 32), load_i64(arguments + 40)
    x, y = load_i64(arguments + 48), load_i64(arguments + 56)
    row = load_i64(arguments + 64) + slot * load_i64(arguments + 72)
    share = load_i64(arguments + 80)
    for r in range(item * share, min(rows, (item + 1) * share)):
        call(decoder, (weights + r * row_nbytes, row, columns))
        for t in range(tokens):
            store_f32(y + 4 * (t * rows + r), _dot(row, x + 4 * t * columns, columns))


_MULTIPLY_ROWS = Verb(_multiply_rows)


@kernel
def _decode_rows(decoder, weights, row_nbytes, ids, out):
    """Rows `ids` of W into float32 out [rows, K]."""
    columns = out.shape[1]
    for i in range(ids.shape[0]):
        source = weights + ids[i] * row_nbytes
        call(decoder, (source, address_of(out) + 4 * i * columns, columns))


def rows_of(w: Matrix, ids: np.ndarray) -> np.ndarray:
    """float32 [len(ids), columns], the rows `ids` int64."""
    out = np.empty((len(ids), w.columns), np.float32)
    _decode_rows(w.decoder, w.address, w.row_nbytes, ids, out)
    return out


def multiply(w: Matrix, x: np.ndarray, pool: ThreadPoolExecutor, team: Team) -> np.ndarray:
    """y float32 [T, rows] = x float32 [T, columns] W^T."""
    x = np.ascontiguousarray(x)
    y = np.empty((x.shape[0], w.rows), np.float32)
    if x.shape[0] <= FEW:
        _multiply_few(w, x, y, team)
        return y
    height = max(16, TILE_BYTES // (4 * w.columns) // 16 * 16)
    for _ in pool.map(partial(_multiply_tile, w, x, y, height), range(0, w.rows, height)):
        pass
    return y


def _multiply_few(w: Matrix, x: np.ndarray, y: np.ndarray, team: Team) -> None:
    scratch = np.empty((team.threads, -(-w.columns // _LANES) * _LANES), np.float32)
    # a fixed share of rows, small enough that the last items end together
    share = max(1, ITEM_VALUES // w.columns)
    arguments = np.array(
        [
            w.decoder, w.address, w.row_nbytes, w.columns, w.rows, x.shape[0],
            x.ctypes.data, y.ctypes.data, scratch.ctypes.data, scratch.strides[0], share,
        ],
        np.int64,
    )  # fmt: skip
    team.run(_MULTIPLY_ROWS, arguments.ctypes.data, -(-w.rows // share))


def _multiply_tile(w: Matrix, x: np.ndarray, y: np.ndarray, height: int, start: int) -> None:
    ids = np.arange(start, min(start + height, w.rows))
    tile = _tile_memory(len(ids) * w.columns).reshape(len(ids), w.columns)
    _decode_rows(w.decoder, w.address, w.row_nbytes, ids, tile)
    np.matmul(x, tile.T, out=y[:, start : start + height])


_own = threading.local()


def _tile_memory(n: int) -> np.ndarray:
    """n float32 values of the calling thread: fresh memory for every tile would cost a page fault
    per 4 KB, a tenth of a prompt's time."""
    memory = getattr(_own, "tile", None)
    if memory is None or memory.size < n:
        memory = _own.tile = np.empty(max(n, TILE_BYTES // 4), np.float32)
    return memory[:n]
