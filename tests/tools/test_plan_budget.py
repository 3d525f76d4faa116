"""A budget is planned as a session keeps it: bytes, small pages and the tokens that fit."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from test_plan import windowed
from tiny_model import write_tiny_model

from engine import InputError, Session, load_model
from engine.kv.budget import Budget
from engine.kv.policy import Policy
from engine.kv.policy_file import parse_policy
from engine.model.archs import spec_of
from engine.model.load import Model, open_checkpoint
from tools.plan import Plan
from tools.plan_budget import BudgetPlan

N_CTX = 600
# types, sinks, window of the first layer, smaller types, bytes
CASES = [
    ("bf16", "bf16", 0, None, (None, None), 400_000),
    ("bf16", "q8_0", 4, None, (None, "q4_0"), 400_000),
    ("int8nsep:32", "int8nsep:64", 3, None, (None, None), 300_000),
    ("int4wfq:32", "f16", 0, None, ("int2wfq:32", None), 360_000),
    ("q8_0", "int8nsep:32", 0, 100, (None, "int3nsep:32"), 300_000),
    ("bf16", "int8nsep:96", 4, 33, ("bf16", "int2nsep:96"), 500_000),
]
BY_LAYER = """
k = "int8nsep:32"
v = "q8_0"
sink = 4
recent = {recent}
[[layers]]
last = 1
k = "bf16"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("plan") / "tiny.gguf", n_ctx=4096)


def model_of(path: Path, monkeypatch: pytest.MonkeyPatch, window: int | None) -> Model:
    if window is not None:
        spec = windowed(spec_of(open_checkpoint(path)), window)
        for place in ("engine.model.load", "tools.plan"):
            monkeypatch.setattr(f"{place}.spec_of", lambda _: spec)
    return load_model(path, backend="reference")


def check(model: Model, policy: Policy, budget: Budget, steps: list[int]) -> None:
    """A session's bytes and small pages after each of `steps` tokens more are the planned ones."""
    planned = BudgetPlan(model.spec, policy, budget)
    session = Session(model, n_ctx=N_CTX, policy=policy, budget=budget)
    assert session.cache.capacity == planned.held(N_CTX).tokens
    for step, n in zip(steps, accumulate(steps), strict=True):
        model.forward(np.zeros(step, np.int32), session.cache)
        held = planned.held(N_CTX, n)
        assert session.cache.nbytes == held.nbytes, n
        sides = [(layer.k, layer.v) for layer in session.cache.layers]
        for i, both in enumerate(zip(*sides, strict=True)):
            every = [(side, j) for side in both for j, p in enumerate(side.pages) if p is not None]
            assert held.pages[i] == len(every)
            assert held.small[i] == sum(j < side.shrunk[0] for side, j in every)
    assert any(held.small)


@pytest.mark.parametrize("steps", [[11] * 45, [45, 200, 11, 244]])
@pytest.mark.parametrize("case", CASES)
def test_planned_bytes_are_those_that_a_budgets_cache_allocates(path, monkeypatch, case, steps):
    ctk, ctv, sink, window, smaller, nbytes = case
    model = model_of(path, monkeypatch, window)
    check(model, Policy.of(ctk, ctv, sink), Budget(nbytes, *smaller), steps)


@pytest.mark.parametrize("window", [None, 60])
@pytest.mark.parametrize("recent", [20, 100])
def test_so_they_are_with_types_by_layer_and_an_exact_window(path, monkeypatch, recent, window):
    model = model_of(path, monkeypatch, window)
    policy = parse_policy(BY_LAYER.format(recent=recent), "by-layer")
    whole = Plan(open_checkpoint(path)).cache_most(policy, N_CTX)
    check(model, policy, Budget(int(0.8 * whole)), [1, 126, 73, 130, 170])


@pytest.mark.parametrize("case", CASES)
def test_pages_become_small_from_the_planned_context_on(path, monkeypatch, case):
    ctk, ctv, sink, window, smaller, nbytes = case
    spec = model_of(path, monkeypatch, window).spec
    planned = BudgetPlan(spec, Policy.of(ctk, ctv, sink), Budget(nbytes, *smaller))
    first = planned.shrinks_from
    assert first is not None
    for n in {*range(1, planned.capacity + 1, 41), first - 1, first, planned.capacity}:
        assert any(planned.held(n).small) == (n >= first)
    roomy = BudgetPlan(spec, Policy.of(ctk, ctv, sink), Budget(1 << 40, *smaller))
    assert (roomy.capacity, roomy.shrinks_from) == (spec.n_ctx_train, None)


def test_the_most_tokens_fit_a_session_and_one_more_is_refused(path):
    model = load_model(path, backend="reference")
    budget, policy = Budget(200_000), Policy.of("bf16", "int8nsep:32")
    most = BudgetPlan(model.spec, policy, budget).capacity
    session = Session(model, n_ctx=most, policy=policy, budget=budget)
    model.forward(np.zeros(most, np.int32), session.cache)
    assert session.cache.nbytes <= 200_000
    session = Session(model, policy=policy, budget=budget)
    with pytest.raises(InputError, match=f"exceed the {most} that fit 200000 bytes"):
        model.forward(np.zeros(most + 1, np.int32), session.cache)


def test_a_budget_below_the_first_tokens_holds_nothing(path):
    planned = BudgetPlan(spec_of(open_checkpoint(path)), Policy.of("f32", "f32"), Budget(1000))
    assert (planned.capacity, planned.shrinks_from) == (0, None)
