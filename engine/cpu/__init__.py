"""The CPU backend: Numba kernels on packed weights and packed pages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from engine.checkpoint import Tensor
from engine.config import available_cores
from engine.cpu import attention, elementwise
from engine.cpu.kv_encode import ENCODERS, first_beyond, write_rows
from engine.cpu.kv_verbs import supported
from engine.cpu.matrix import Matrix, matrix, multiply, rows_of
from engine.cpu.team import Team
from engine.errors import InputError
from engine.kv.cache import CacheType, LayerCache, SideCache
from engine.ops import HostOps, not_finite
from engine.reference import dequantize


class CpuOps(HostOps):
    """Float32 activations, weights and pages read in their packed form.

    `threads` is the number of threads of every op, by default one per available core.
    """

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        cores = available_cores()
        threads = cores if threads is None else threads
        if not 1 <= threads <= cores:
            raise InputError(f"{threads} threads: this machine can run 1 to {cores}")
        self.threads = threads
        self._team, self._pool = Team(threads), ThreadPoolExecutor(threads)
        # tiles of a product are spread over our own threads, each multiplied by one
        threadpool_limits(1, user_api="blas")

    def upload(self, tensor: Tensor) -> Matrix | np.ndarray:
        return matrix(tensor) if len(tensor.shape) == 2 else dequantize(tensor)

    def supports(self, kind: CacheType) -> bool:
        return supported(kind.format) and kind.open_format.name in ENCODERS

    def embed(self, weight: Matrix, ids: np.ndarray) -> np.ndarray:
        return rows_of(weight, ids.astype(np.int64))

    def linear(self, weight: Matrix, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        y = multiply(weight, x, self._pool, self._team)
        if bias is not None:
            y += bias
        return y

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        x = np.ascontiguousarray(x)
        out = np.empty_like(x)
        rows = x.reshape(-1, x.shape[-1])
        elementwise.rms_norm(rows, weight, np.float32(eps), out.reshape(rows.shape))
        return out

    def rope_(self, x: np.ndarray, table: np.ndarray, position: int, layout: str) -> None:
        if layout == "neox":
            elementwise.rope_(x, table, position, table.shape[1], 1)
        else:
            elementwise.rope_(x, table, position, 1, 2)

    def glu(self, gate: np.ndarray, up: np.ndarray, act: str) -> np.ndarray:
        x, y = elementwise.lanes(gate), elementwise.lanes(up)
        out = np.empty_like(x)
        elementwise.glu(x, y, out, act == "gelu_tanh", self._team)
        return out[: gate.size].reshape(gate.shape)

    def append(self, layer: LayerCache, k: np.ndarray, v: np.ndarray) -> None:
        for side, x in ((layer.k, k), (layer.v, v)):
            bad = first_beyond(x, np.float32(side.type.open_format.limit))
            if bad >= 0:
                raise not_finite(layer.index, side, bad)
            _write(side, x)
        layer.advance(k.shape[0])

    def attend(self, q: np.ndarray, layer: LayerCache, scale: float, softcap: float) -> np.ndarray:
        return attention.attend(q, layer, scale, softcap, self._team)


def _write(side: SideCache, x: np.ndarray) -> None:
    """Encode x [T, kv_heads, D] into the open page behind the tokens it already holds."""
    stored, page = side.type.open_format, side.open_page()
    padded = np.zeros(-(-side.head_dim // stored.block) * stored.block, np.float32)
    write_rows(
        ENCODERS[stored.name].address,
        x,
        page.ctypes.data,
        page.shape[1],
        stored.row_nbytes(side.head_dim),
        side.n % side.type.page_tokens,
        padded,
    )
