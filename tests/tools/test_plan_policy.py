"""The planner's bytes are a session's for types by layer, and for an exact window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_plan import windowed
from tiny_model import write_tiny_model

from engine import Session, load_model
from engine.kv.policy import Policy
from engine.kv.policy_file import read_policy
from engine.model.archs import spec_of
from engine.model.load import open_checkpoint
from minikv.report import f16_nbytes
from tools.plan import Plan

MIXED = """
k = "{k}"
v = "int3nsep:32"
sink = {sink}
recent = {recent}
[[layers]]
last = 1
k = "q4_0"
v = "bf16"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("plan") / "tiny.gguf", n_ctx=4096)


def policy(folder: Path, k: str, sink: int, recent: int) -> Policy:
    (folder / "mixed.toml").write_text(MIXED.format(k=k, sink=sink, recent=recent))
    return read_policy(folder / "mixed.toml")


def filled(model, stored: Policy, steps: list[int], n_ctx: int) -> list[int]:
    """The bytes of a session's cache after each of `steps` tokens more."""
    session, found = Session(model, n_ctx=n_ctx, policy=stored), []
    for step in steps:
        model.forward(np.zeros(step, np.int32), session.cache)
        found.append(session.cache.nbytes)
    return found


@pytest.mark.parametrize("k", ["q8_0", "int3wfq:64", "int3nsep:32"])
@pytest.mark.parametrize(("sink", "recent"), [(4, 1), (3, 100), (0, 5000)])
def test_planned_bytes_are_those_of_a_mixed_cache(path, tmp_path, k, sink, recent):
    model, plan = load_model(path, backend="reference"), Plan(open_checkpoint(path))
    stored, steps = policy(tmp_path, k, sink, recent), [1, 126, 1, 1, 130, 61, 200]
    planned = [plan.cache(stored, int(n), n_ctx=600) for n in np.cumsum(steps)]
    assert filled(model, stored, steps, 600) == planned
    assert plan.cache_most(stored, 520) == plan.cache(stored, 520, 520)


@pytest.mark.parametrize("window", [33, 100])
@pytest.mark.parametrize(("sink", "recent"), [(4, 20), (0, 300)])
def test_windowed_layers_free_what_the_plan_says(path, monkeypatch, tmp_path, window, sink, recent):
    spec = windowed(spec_of(open_checkpoint(path)), window)
    for place in ("engine.model.load", "tools.plan"):
        monkeypatch.setattr(f"{place}.spec_of", lambda _: spec)
    model, plan = load_model(path, backend="reference"), Plan(open_checkpoint(path))
    stored = policy(tmp_path, "int3nsep:64", sink, recent)
    for steps in ([1] * 280, [200, 55, 1, 64, 130]):
        planned = [plan.cache(stored, int(n), 600) for n in np.cumsum(steps)]
        assert filled(model, stored, steps, 600) == planned


def test_what_sessions_are_compared_with_is_a_cache_of_f16(path, monkeypatch):
    # a layer with a window counts for its window alone
    spec = windowed(spec_of(open_checkpoint(path)), 100)
    monkeypatch.setattr("engine.model.load.spec_of", lambda _: spec)
    model = load_model(path, backend="reference")
    session = Session(model, n_ctx=1024, ctk="f16", ctv="f16")
    for _ in range(400):
        model.forward(np.zeros(1, np.int32), session.cache)
        assert f16_nbytes(session) == session.cache.nbytes
