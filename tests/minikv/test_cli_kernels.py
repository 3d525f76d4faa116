"""The wait for the compiler is announced when it happens, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from command import ROOT

KERNELS = """
from engine.cpu.jit import Verb
from minikv.kernels import announce_compilation

def kernel(x):
    pass

def another(x):
    pass

announce_compilation(lambda: print("said"))
Verb(kernel).address
Verb(another).address
"""


def test_compilation_is_announced_once_and_kernels_from_the_disk_cache_are_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MINIKV_HOME": str(tmp_path / "home")}
    told = [
        subprocess.run(
            [sys.executable, "kernels.py"], cwd=tmp_path, env=environment, capture_output=True
        ).stdout
        for _ in range(2)
    ]
    assert told == [b"said\n", b""]
