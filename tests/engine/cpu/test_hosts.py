"""The engine runs on processors that have less than the one that tests it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine import Session, load_model

MODEL = Path(__file__).parents[2] / "fixtures" / "oracle" / "llama"
PROMPT, NEXT = [1, *range(3, 60)], 7
RUN = f"""
import sys
import numpy as np
from engine import Session, load_model
from engine.cpu.host import AMX, AVX512, VNNI
assert not (AMX or AVX512 or VNNI)
session = Session(load_model({str(MODEL)!r}), ctk="int3nsep:32", ctv="q8_0")
found = [session.extend({PROMPT}), session.extend([{NEXT}])]
np.save(sys.argv[1], np.stack(found))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86-64 processor")
def test_the_oldest_processor_computes_what_this_one_does(tmp_path: Path) -> None:
    path = tmp_path / "logits.npy"
    oldest = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        env=os.environ | oldest | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    session = Session(load_model(MODEL, backend="reference"), ctk="int3nsep:32", ctv="q8_0")
    want = np.stack([session.extend(PROMPT), session.extend([NEXT])])
    np.testing.assert_allclose(np.load(path), want, rtol=0, atol=0.01 * np.abs(want).max())
