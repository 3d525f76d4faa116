"""Fixtures of the command-line tests: the command, a tiny model, a text to measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Run, runner
from tiny_model import write_tiny_model


@pytest.fixture
def minikv(monkeypatch, capsys) -> Run:
    """`minikv(*args)` runs the command in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog.\n\n" * 20)
    return path
