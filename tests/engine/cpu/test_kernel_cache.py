"""Compiled verbs are found again, and only what was compiled from the same code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.cpu.kernel_cache import KernelCache, name_of

PROGRAM = """
import sys
import numpy as np
from engine.cpu.jit import Verb, on_compilation
from engine.cpu.simd import load_i64, store_i64

def add(to, n):
    store_i64(to, load_i64(to) + n + 0)

word, compiled = np.array([40], np.int64), []
on_compilation(lambda: compiled.append(1))
Verb(add).function(word.ctypes.data, 2)
print(word[0], len(compiled) > 0, any(name.split(".")[0] == "numba" for name in sys.modules))
"""


@pytest.fixture
def answer(tmp_path: Path) -> Callable[[], str]:
    """What a program with a verb prints, run with a kernel cache of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "MINIKV_HOME": str(tmp_path / "home"),
    }
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run() -> str:
        command = [sys.executable, str(program)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    return run


def stored(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "home" / "kernels").glob("*/__main__.add.*")
    return file


def test_a_second_process_neither_compiles_nor_imports_the_compiler(
    answer: Callable[[], str],
) -> None:
    assert answer() == "42 True True"
    assert answer() == "42 False False"


def test_a_damaged_kernel_is_compiled_anew(tmp_path: Path, answer: Callable[[], str]) -> None:
    answer()
    stored(tmp_path).write_bytes(stored(tmp_path).read_bytes()[:-9])
    assert answer().startswith("42 True")
    assert answer().startswith("42 False")


def test_nothing_damaged_is_read(tmp_path: Path) -> None:
    cache, code = KernelCache(tmp_path), b"code" * 20
    cache.write("name", code)
    whole = (tmp_path / "name").read_bytes()
    for damaged in (whole[:-9], whole[:20], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        (tmp_path / "name").write_bytes(damaged)
        assert cache.read("name") is None
    (tmp_path / "name").write_bytes(whole)
    assert cache.read("name") == code


def test_an_edited_kernel_is_compiled_anew(tmp_path: Path, answer: Callable[[], str]) -> None:
    answer()
    (tmp_path / "program.py").write_text(PROGRAM.replace("+ 0", "+ 1"))
    assert answer() == "43 True True"


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = KernelCache(tmp_path / "file" / "folder")
    cache.write("name", b"code")
    assert cache.read("name") is None


def test_names_tell_verbs_of_one_body_apart() -> None:
    def verb(n: float, label: str = "a") -> Callable[..., None]:
        def body(x: int, y: int = int(n)) -> None:
            print(n, label, x, y)

        return body

    def other(x: int) -> None:
        print(many, x)

    many = np.zeros(2000)  # two such arrays may print alike
    bodies = [verb(1), verb(1.0), verb(2), verb(1, "b")]
    assert len({name_of(body) for body in bodies}) == len(bodies)
    assert name_of(verb(1)) == name_of(verb(1))
    with pytest.raises(TypeError, match=r"other closes over array.*, no plain value"):
        name_of(other)
