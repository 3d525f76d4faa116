"""Every op computes on the CPU backend what the reference says, and writes where it may."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from op_cases import OP_CASES, OpCase

from engine.cpu import CpuOps
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


@every_case
def test_kernels_write_inside_their_memory(case: OpCase, monkeypatch: pytest.MonkeyPatch) -> None:
    run = case.prepare(CPU)
    want = run()  # compiles what is needed while the modules still see the real NumPy
    guarded = Guarded()
    for name, module in list(sys.modules.items()):
        if name.startswith(("engine.cpu", "engine.kv")) and hasattr(module, "np"):
            monkeypatch.setattr(module, "np", guarded)
    again = case.prepare(CPU)()
    guarded.check()
    np.testing.assert_array_equal(again, want)
