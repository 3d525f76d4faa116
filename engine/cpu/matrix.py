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

import numba
import numpy as np
from numba.np.ufunc.parallel import get_thread_id

from engine.checkpoint import Tensor
from engine.cpu.blocks import BLOCK_DECODERS
from engine.cpu.jit import call, kernel, parallel
from engine.cpu.kquants import K_DECODERS
from engine.cpu.simd import address_of, f32x16, fma, load, load_f32, reduce_add, zeros
from engine.reference import dequantize

DECODERS = {**BLOCK_DECODERS, **K_DECODERS}
FEW = 8  # tokens up to which decoding a row once and multiplying it in place is the faster way
TILE_BYTES = 1 << 20  # of decoded rows: a tile stays in the second-level cache
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


@parallel
def _multiply_few(decoder, weights, row_nbytes, x, y, scratch):
    """y [T, N] = x [T, K] W^T for few tokens; `scratch` [threads, K padded]."""
    tokens, columns = x.shape
    rows = y.shape[1]
    parts = 4 * scratch.shape[0]
    share = (rows + parts - 1) // parts
    x0, stride = address_of(x), 4 * columns
    for part in numba.prange(parts):
        row = address_of(scratch) + 4 * get_thread_id() * scratch.shape[1]
        for r in range(part * share, min(rows, (part + 1) * share)):
            call(decoder, (weights + r * row_nbytes, row, columns))
            for t in range(tokens):
                y[t, r] = _dot(row, x0 + t * stride, columns)


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


def multiply(w: Matrix, x: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> np.ndarray:
    """y float32 [T, rows] = x float32 [T, columns] W^T."""
    x = np.ascontiguousarray(x)
    y = np.empty((x.shape[0], w.rows), np.float32)
    if x.shape[0] <= FEW:
        scratch = np.empty((threads, -(-w.columns // _LANES) * _LANES), np.float32)
        _multiply_few(w.decoder, w.address, w.row_nbytes, x, y, scratch)
        return y
    height = max(16, TILE_BYTES // (4 * w.columns) // 16 * 16)
    for _ in pool.map(partial(_multiply_tile, w, x, y, height), range(0, w.rows, height)):
        pass
    return y


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
