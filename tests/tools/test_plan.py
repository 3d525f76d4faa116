"""The planner: what it says before loading is what a session then allocates."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_model

from engine import Model, Session, load_model
from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.kv.formats import KV_FORMATS
from engine.kv.policy import Policy
from engine.memory import aligned_zeros
from engine.model.archs import spec_of
from engine.model.load import open_checkpoint
from engine.model.spec import ModelSpec
from tools.plan import Plan, cheapest
from tools.results import Cell, Results


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("plan") / "tiny.gguf", n_ctx=4096)


@pytest.fixture(scope="module")
def checkpoint(path: Path) -> Checkpoint:
    return open_checkpoint(path)


def windowed(spec: ModelSpec, window: int) -> ModelSpec:
    """The first layer sees only `window` tokens, as in models that mix both kinds."""
    first, *others = spec.layers
    local = replace(first, attention=replace(first.attention, window=window))
    return replace(spec, layers=(local, *others))


def fill(model: Model, pair: tuple[str, str], steps: list[int], sink: int = 0) -> list[int]:
    """The bytes of a real session's cache after each of `steps` tokens more."""
    session = Session(model, n_ctx=1024, ctk=pair[0], ctv=pair[1], sink=sink)
    found = []
    for step in steps:
        model.forward(np.zeros(step, np.int32), session.cache)
        found.append(session.cache.nbytes)
    return found


@pytest.mark.parametrize("name", [*KV_FORMATS, "int3nsep:32"])
def test_planned_cache_bytes_are_those_a_session_allocates(path, checkpoint, name):
    model, plan = load_model(path, backend="reference"), Plan(checkpoint)
    steps = [1, 126, 1, 1, 130, 61]
    for pair, sink in (((name, "f16"), 0), (("bf16", name), 0), ((name, name), 3)):
        planned = [plan.cache(Policy.of(*pair, sink), int(n)) for n in np.cumsum(steps)]
        assert fill(model, pair, steps, sink) == planned
    assert plan.cache(Policy.of(name, name), 0) == 0


@pytest.mark.parametrize(
    ("name", "sink", "window"),
    [
        *(("q8_0", 0, 1), ("q8_0", 0, 100), ("int3nsep:32", 0, 33), ("int3nsep:32", 0, 64)),
        *(("int2nsep:64", 0, 1), ("int2nsep:64", 0, 64), ("q8_0", 4, 33), ("q8_0", 4, 64)),
        *(("int3nsep:32", 32, 1), ("int3nsep:32", 32, 100)),
    ],
)
def test_a_window_frees_what_the_plan_says_it_frees(
    path, checkpoint, monkeypatch, window, name, sink
):
    spec = windowed(spec_of(checkpoint), window)
    for place in ("engine.model.load", "tools.plan"):
        monkeypatch.setattr(f"{place}.spec_of", lambda _: spec)
    model, plan = load_model(path, backend="reference"), Plan(checkpoint)
    held, types = fill(model, (name, name), [1] * 400, sink), Policy.of(name, name, sink)
    assert held == [plan.cache(types, n) for n in range(1, 401)]
    assert [plan.cache_most(types, n) for n in range(1, 401)] == list(np.maximum.accumulate(held))


def test_planned_weights_are_the_arrays_of_a_loaded_model(path, checkpoint):
    # every weight is float32, which the reference backend does not copy
    weights = load_model(path, backend="reference").weights
    arrays = [array for part in (weights.model, *weights.layers) for array in part.values()]
    assert Plan(checkpoint).weights == sum(array.nbytes for array in arrays)


def test_a_session_takes_no_more_than_cache_and_scratch_and_not_much_less(
    path, checkpoint, monkeypatch
):
    # what NumPy allocates is what can be traced
    monkeypatch.setattr("engine.cpu.memory.huge_zeros", lambda nbytes: aligned_zeros((nbytes,)))
    model, tokens = load_model(path), [1] * 600
    Session(model, n_ctx=600, ctk="q8_0", ctv="q8_0").extend(tokens)  # compiles
    model = load_model(path)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    Session(model, n_ctx=600, ctk="q8_0", ctv="q8_0").extend(tokens)
    seen = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    plan, types = Plan(checkpoint), Policy.of("q8_0", "q8_0")
    assert seen < plan.cache_most(types, 600) + plan.scratch(types, 600) < 2 * seen


@pytest.mark.parametrize("name", ["f16", "int3nsep"])
def test_the_largest_context_fits_and_one_token_more_does_not(checkpoint, name):
    plan, types = Plan(checkpoint), Policy.of(name, name)
    for n in (1, 128, 129, 1000):
        # page by page: more tokens may come for free
        largest = plan.largest_context(types, plan.total(types, n))
        assert largest >= n and plan.total(types, largest) == plan.total(types, n)
        assert plan.total(types, largest + 1) > plan.total(types, n)
    assert plan.largest_context(types, plan.weights) == 0
    assert plan.largest_context(types, 1 << 60) == plan.spec.n_ctx_train


def test_the_cheapest_pair_is_the_smallest_whose_divergence_is_small_enough(checkpoint, tmp_path):
    plan, results = Plan(checkpoint), Results(tmp_path / "grid.sqlite", {})
    with pytest.raises(InputError, match="no cell has a KLD"):
        cheapest(results, plan, 1024, 1.0)
    measured = {("f16", "f16"): 0.0, ("q8_0", "q8_0"): 0.001, ("q8_0", "q4_0"): 0.01}
    for pair, kld in {**measured, ("q4_0", "q4_0"): 0.3}.items():
        results.put(Cell(pair, {"mean_kld": kld}, np.zeros(0)))
    for bound, pair in ((0.3, ("q4_0", "q4_0")), (0.02, ("q8_0", "q4_0")), (0.0, ("f16", "f16"))):
        found = cheapest(results, plan, 1024, bound)
        assert found is not None and found.pair == pair
    assert cheapest(results, plan, 1024, -1.0) is None


def test_an_unknown_type_is_refused_by_name():
    with pytest.raises(InputError, match="q3: not a KV cache type"):
        Policy.of("f16", "q3")
