"""Work aside ends as work in place would."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from engine.aside import Aside
from engine.errors import InputError


def test_the_result_is_that_of_the_work_however_often_it_is_asked_for() -> None:
    go = threading.Event()
    aside = Aside(lambda: go.wait(10) and threading.current_thread())
    go.set()
    assert aside.result() is aside.result()
    assert aside.result() is not threading.current_thread()


def test_what_the_work_raises_reaches_who_asks_for_its_result() -> None:
    def fail() -> None:
        raise InputError("no such thing")

    aside = Aside(fail)
    for _ in range(2):
        with pytest.raises(InputError, match="no such thing"):
            aside.result()


def test_a_process_that_ends_lets_the_work_end_first() -> None:
    program = """
import sys, time
from engine.aside import Aside
Aside(lambda: (time.sleep(0.2), print("worked")))
sys.exit(3)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "worked\n", "")
