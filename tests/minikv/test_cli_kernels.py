"""The wait for the compiler is announced when it happens, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
from command import ROOT

from minikv.kernels import announce_compilation

KERNEL = """
import numba
from minikv.kernels import announce_compilation

@numba.njit(cache=True)
def kernel(x):
    return x + 1

announce_compilation(lambda: print("said"))
kernel(1)
kernel(1.0)
"""


def test_compilation_is_announced_once():
    said = []
    announce_compilation(lambda: said.append(1))
    kernel = numba.njit(lambda x: x + 1)
    assert said == []
    kernel(1)
    kernel(1.0)
    assert said == [1]


def test_kernels_from_the_disk_cache_are_not_announced(tmp_path: Path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    told = [
        subprocess.run(
            [sys.executable, "kernel.py"], cwd=tmp_path, env=environment, capture_output=True
        ).stdout
        for _ in range(2)
    ]
    assert told == [b"said\n", b""]
