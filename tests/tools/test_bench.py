"""The benchmark runs llama-bench's tests: these tokens, at this depth, timed alone."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from letters import letters_model

import tools.bench
from engine import InputError, Session
from engine.model.load import Model
from tools.bench import Plan, Result, Workload, mean_and_deviation, measure


@pytest.fixture(scope="module")
def model() -> Model:
    return letters_model()


@dataclass
class Log:
    """What happened between two looks at the clock: (tokens cached at the start, sizes read)."""

    timed: list[tuple[int, list[int]]] = field(default_factory=list)
    prefixes: list[list[int]] = field(default_factory=list)
    filled: int = 0
    _running: bool = False


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    sessions: list[Session] = []

    class Watched(Session):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            sessions.append(self)

        def extend(self, tokens: Any) -> Any:
            if log._running:
                log.timed[-1][1].append(len(tokens))
            else:
                log.filled += len(tokens)
            return super().extend(tokens)

    class Clock:
        time = staticmethod(time.time)

        @staticmethod
        def perf_counter_ns() -> int:
            log._running = not log._running
            if log._running:
                log.timed.append((len(sessions[-1].tokens), []))
                log.prefixes.append(list(sessions[-1].tokens))
            return time.perf_counter_ns()

    monkeypatch.setattr(tools.bench, "Session", Watched)
    monkeypatch.setattr(tools.bench, "time", Clock)
    return log


def results(model: Model, plan: Plan) -> list[Result]:
    return list(measure(model, plan, lambda test, doing: None))


@pytest.mark.parametrize("kind", ["bf16", "int3nsep:32"])
@pytest.mark.parametrize("depth", [0, 64, 40])
def test_each_repetition_times_its_tokens_alone_behind_the_depth(
    model: Model, log: Log, kind: str, depth: int
) -> None:
    plan = Plan((50,), (3,), ((30, 2),), (depth,), (kind,), ("bf16",), repetitions=2)
    assert [len(result.samples_ns) for result in results(model, plan)] == [2, 2, 2]
    runs = [[50], [50], [1, 1, 1], [1, 1, 1], [30, 1, 1], [30, 1, 1]]
    assert log.timed == [(depth, sizes) for sizes in runs]
    assert len({tuple(prefix) for prefix in log.prefixes}) == 1


def test_the_depth_is_read_once_where_the_cache_can_go_back_to_it(model: Model, log: Log) -> None:
    results(model, Plan((8,), (), (), (64,), ("int3nsep:32",), ("bf16",), repetitions=3))
    warm_up = 8
    assert log.filled == 64 + warm_up
    log.filled = 0
    # token 70 lies in the page of 64 to 96, which the prompt completes: 64 are kept
    results(model, Plan((32,), (), (), (70,), ("int3nsep:32",), ("bf16",), repetitions=3))
    assert log.filled == 70 + 32 + 3 * (70 - 64)


def test_samples_are_the_seconds_that_passed(model: Model, monkeypatch: Any) -> None:
    looks = iter([1000, 3000, 10_000, 14_000])

    class Clock:
        time = staticmethod(lambda: 5.0)
        perf_counter_ns = staticmethod(lambda: next(looks))

    monkeypatch.setattr(tools.bench, "time", Clock)
    (result,) = results(model, Plan((), (2,), repetitions=2))
    assert (result.samples_ns, result.started) == ((2000, 4000), 5.0)
    assert result.samples_ts == [1e6, 0.5e6]


def test_statistics_are_the_mean_and_the_sample_deviation() -> None:
    assert mean_and_deviation([1, 2, 3, 6]) == (3, pytest.approx(math.sqrt(14 / 3)))
    assert mean_and_deviation([5.0]) == (5, 0)


def test_cases_come_in_llama_benchs_order_under_its_names() -> None:
    plan = Plan((16, 8, 0), (4,), ((8, 4), (0, 0)), (0, 32), ("f16", "q8_0"), ("f16",))
    names = ["pp16", "pp8", "tg4", "pp8+tg4"]
    deep = [f"{name} @ d32" for name in names]
    cases = [(k, v, [test.name for test in tests]) for k, v, tests in plan.cases()]
    assert cases == [(k, "f16", tests) for k in ("f16", "q8_0") for tests in (names, deep)]
    assert len(plan) == 16


def test_results_name_what_they_measured(model: Model) -> None:
    plan = Plan((2,), (1,), (), (0, 5), ("f16", "bf16"), ("q8_0",), repetitions=1)
    told: list[str] = []
    found = list(measure(model, plan, lambda test, doing: told.append(test)))
    tests = [Workload(2, 0), Workload(0, 1), Workload(2, 0, 5), Workload(0, 1, 5)]
    named = [(result.ctk, result.ctv, result.test) for result in found]
    assert named == [(k, "q8_0", test) for k in ("f16", "bf16") for test in tests]
    assert list(dict.fromkeys(told)) == [f"{k}/{v} {test.name}" for k, v, test in named]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": (0,), "gens": ()}, "nothing to measure"),
        ({"repetitions": 0}, "repetitions 0: must be 1 or more"),
        ({"ctv": ("q3",)}, "q3: not a KV cache type"),
    ],
)
def test_a_plan_without_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan(**values)


def test_a_test_that_does_not_fit_is_refused_before_the_first_is_run(
    model: Model, log: Log
) -> None:
    n_ctx = model.spec.n_ctx_train
    with pytest.raises(InputError, match=f"pp9 @ d{n_ctx - 8}: takes {n_ctx + 1} tokens"):
        results(model, Plan((8, 9), (), (), (0, n_ctx - 8)))
    assert log.filled == 0
