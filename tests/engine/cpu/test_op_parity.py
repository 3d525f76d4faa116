"""Every op computes on the CPU backend what the reference says, and writes where it may."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bench.op_cases import OP_CASES, Attention, OpCase, linear
from engine.cpu import CpuOps
from engine.cpu.memory import Pool
from engine.reference import ReferenceOps

CPU, REFERENCE = CpuOps(), ReferenceOps()
every_case = pytest.mark.parametrize("case", OP_CASES, ids=[case.name for case in OP_CASES])


@every_case
def test_cpu_equals_reference(case: OpCase) -> None:
    want, got = case.prepare(REFERENCE)(), case.prepare(CPU)()
    assert got.shape == want.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=case.tolerance * np.abs(want).max())


class Guarded:
    """NumPy whose new arrays lie between bands of a known byte and start out as nonsense."""

    BAND = 4096

    def __init__(self) -> None:
        self.buffers: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = np.float64) -> np.ndarray:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = np.full(nbytes + 2 * self.BAND, 0xFF, np.uint8)  # float32 NaNs
        self.buffers.append(buffer)
        return buffer[self.BAND : self.BAND + nbytes].view(dtype).reshape(shape)

    def zeros(self, shape: Any, dtype: Any = np.float64) -> np.ndarray:
        made = self.empty(shape, dtype)
        made[...] = 0
        return made

    def empty_like(self, array: np.ndarray) -> np.ndarray:
        return self.empty(array.shape, array.dtype)

    def check(self) -> None:
        assert all((b[: self.BAND] == 0xFF).all() for b in self.buffers), "written in front"
        assert all((b[-self.BAND :] == 0xFF).all() for b in self.buffers), "written behind"


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Guarded]:
    """Puts new arrays of the backend and the cache under guard, once their kernels are compiled."""

    def install() -> Guarded:
        guard = Guarded()
        for name, module in list(sys.modules.items()):
            if name.startswith(("engine.cpu", "engine.kv")) and hasattr(module, "np"):
                monkeypatch.setattr(module, "np", guard)
        monkeypatch.setattr(CPU, "_pool", Pool())
        CPU.discard()
        return guard

    return install


@every_case
def test_kernels_write_inside_their_memory(case: OpCase, guarded: Callable[[], Guarded]) -> None:
    want = case.prepare(CPU)()
    guard = guarded()
    again = case.prepare(CPU)()
    guard.check()
    np.testing.assert_array_equal(again, want)


@pytest.mark.skipif(CPU.threads < 2, reason="needs two cores")
def test_a_backend_of_one_thread_stays_in_its_scratch_beside_one_of_two(
    guarded: Callable[[], Guarded],
) -> None:
    one, _ = CpuOps(1), CpuOps(2)
    for case in (linear("Q8_0", 301, 96, 1), Attention(heads=8, kv_heads=8, cached=200).case()):
        want = case.prepare(CPU)()
        guard = guarded()
        # Numba counts threads per thread: one that was never told would use all cores
        with ThreadPoolExecutor(1) as other:
            got = [case.prepare(one)(), other.submit(case.prepare(one)).result()]
        guard.check()
        np.testing.assert_array_equal(got, [want, want])
