"""The README promises what the continuous check runs, and no more than the command has."""

from __future__ import annotations

import re

import pytest
from command import ROOT

from minikv.sources import CATALOGUE

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("start", ["pip install -e . && minikv run", "pip install -e '.[dev]'"])
def test_the_first_commands_are_those_that_are_checked(start):
    (command,) = re.findall(rf"^    ({re.escape(start)}.*)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_command_of_the_readme_has_the_options_it_is_given(minikv):
    for command in ("run", "info", "pull", "ppl", "bench", "plan", "doctor"):
        known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", minikv(command, "--help").out))
        for line in re.findall(rf"^    (?:\$ )?minikv {command}\b(.*)$", README, re.MULTILINE):
            text = re.sub(r"\"[^\"]*\"|#.*", "", line)
            assert set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text)) <= known, line


def test_the_table_of_models_is_the_catalogue():
    named = set(
        re.findall(r"^\| `([^`]+)`(?: \(default\))? \|.*\| (?:chat|base)", README, re.MULTILINE)
    )
    assert named == set(CATALOGUE)
