"""Object code finds the functions it names whether Numba is imported or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import math
import sys
import numpy as np
from engine.cpu.jit import Verb
from engine.cpu.simd import load_f64, store_f64

def frexp_ldexp(x):
    fraction, exponent = math.frexp(load_f64(x))
    store_f64(x, math.ldexp(fraction, exponent + 3))

def gamma(x):
    store_f64(x, math.gamma(load_f64(x)))

value = np.array([5.0])
Verb({name}).function(value.ctypes.data)
print(value[0])
"""


@pytest.mark.parametrize(("name", "result"), [("frexp_ldexp", "40.0"), ("gamma", "24.0")])
def test_a_second_process_computes_what_the_first_did(
    name: str, result: str, tmp_path: Path
) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "MINIKV_HOME": str(tmp_path / "home"),
    }
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("{name}", name))
    for _ in range(2):
        command = [sys.executable, str(program)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == result, done.stderr
