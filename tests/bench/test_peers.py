"""Engines run in turn, and the ratio is that to the peer's better setting."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.peers import Contestant, race, table, token_nbytes
from engine.model.archs import spec_of
from engine.model.load import open_checkpoint

ORACLE = Path(__file__).parents[1] / "fixtures" / "oracle"


def contestant(name: str, *speeds: float, log: Path) -> Contestant:
    """A program that leaves its name in `log` and reports these speeds of pp4, tg2 @ d8, ..."""
    tests = [(4, 0, 0), (0, 2, 8)]
    records = [
        {"n_prompt": p, "n_gen": n, "n_depth": d, "avg_ts": speed}
        for (p, n, d), speed in zip(tests, speeds, strict=False)
    ]
    script = f"open({str(log)!r}, 'a').write({name!r} + ' '); print({json.dumps(records)!r})"
    return Contestant(name, [sys.executable, "-c", script])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_every_round_runs_all_and_begins_with_another(log: Path) -> None:
    runners = [contestant(name, 1.0, log=log) for name in "abc"]
    lines = list(race(runners, 4))
    assert log.read_text().split() == [*"abc", *"bca", *"cab", *"abc"]
    assert lines[:2] == ["round 1 of 4: a", "round 1 of 4: b"]
    assert all(runner.speeds == {(4, 0, 0): [1.0] * 4} for runner in runners)


def test_the_ratio_is_of_medians_to_the_better_peer() -> None:
    pp, tg = (4, 0, 0), (0, 2, 8)
    ours = Contestant("minikv", [], {pp: [10, 30, 20], tg: [5]})
    slow, fast = Contestant("fa 0", [], {pp: [1, 4, 40]}), Contestant("fa 1", [], {pp: [8, 9, 7]})
    assert list(table(ours, [slow, fast], lambda case, speed: speed / 10 / case[1])) == [
        "| test | minikv | fa 0 | fa 1 | ratio | of bandwidth |",
        "|---|---|---|---|---|---|",
        "| pp4 | 20.0 (10.0 to 30.0) | 4.0 (1.0 to 40.0) | 8.0 (7.0 to 9.0) | 2.50 | - |",
        "| tg2 @ d8 | 5.0 (5.0 to 5.0) | - | - | - | 0.25 |",
    ]


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("gemma3", True)])
def test_a_token_reads_the_cache_and_all_matrices_but_an_embedding_of_its_own(
    name: str, tied: bool
) -> None:
    checkpoint = open_checkpoint(ORACLE / name)
    weights = sum(tensor.data.nbytes for tensor in checkpoint.tensors.values())
    if not tied:
        weights -= checkpoint.tensors["token_embd.weight"].data.nbytes
    layers = [layer.attention for layer in spec_of(checkpoint).layers]
    page = 128 * 2 * 2 * sum(a.kv_heads * a.head_dim for a in layers)
    for case in ((0, 2, 100), (0, 200, 0)):
        assert token_nbytes(checkpoint, ("bf16", "bf16"), case) == weights + page


def test_who_fails_is_told_once_and_the_others_go_on(log: Path) -> None:
    broken = Contestant("b", [sys.executable, "-c", "import sys; sys.exit('cannot\\nquantize')"])
    sound = contestant("a", 3.0, log=log)
    lines = list(race([sound, broken], 3))
    assert [line for line in lines if "exit" in line] == ["b: exit status 1: quantize"]
    assert sound.speeds == {(4, 0, 0): [3.0] * 3}
    (row,) = (line for line in table(sound, [broken], lambda *_: 0.0) if "pp4" in line)
    assert row.endswith("| - | - | - |")
