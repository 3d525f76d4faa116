"""How fast a model reads a prompt and decodes, by llama-bench's tests.

`pp512` appends a prompt of 512 tokens, `tg128` then 128 tokens one by one, `pp512+tg128` both, and
`@ d4096` does so in a cache that holds 4096 tokens already.  Tokens are random, as llama-bench's
are: speed does not depend on what they say.  A sample is one repetition's time; a result's speed is
the mean of the samples' tokens per second, with their standard deviation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine.errors import InputError
from engine.kv.cache import CacheType
from engine.kv.formats import kv_format
from engine.model.load import Model
from engine.session import Session

Tell = Callable[[str, str], None]  # the test, and what it is doing


@dataclass(frozen=True)
class Workload:
    """A prompt of `n_prompt` tokens, then `n_gen` single ones, behind `n_depth` cached ones."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_prompt + self.n_gen

    @property
    def name(self) -> str:
        parts = [f"{kind}{n}" for kind, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")


@dataclass(frozen=True)
class Plan:
    """Every test at every depth, with every pair of cache types: lists as llama-bench takes them.

    Raises InputError for what cannot be measured, before a model is loaded.
    """

    prompts: tuple[int, ...] = (512,)
    gens: tuple[int, ...] = (128,)
    pairs: tuple[tuple[int, int], ...] = ()
    depths: tuple[int, ...] = (0,)
    ctk: tuple[str, ...] = ("bf16",)
    ctv: tuple[str, ...] = ("bf16",)
    repetitions: int = 5
    sink: int = 0

    def __post_init__(self) -> None:
        if not self.tests(0):
            raise InputError("nothing to measure: -p, -n and -pg name no tokens")
        if self.repetitions < 1:
            raise InputError(f"repetitions {self.repetitions}: must be 1 or more")
        for name in (*self.ctk, *self.ctv):
            CacheType.of(kv_format(name), self.sink)

    def tests(self, depth: int) -> list[Workload]:
        """Prompts first, then generations, then pairs; those without tokens are left out."""
        sizes = [(n, 0) for n in self.prompts] + [(0, n) for n in self.gens] + [*self.pairs]
        return [Workload(*size, depth) for size in sizes if any(size)]

    def cases(self) -> Iterator[tuple[str, str, list[Workload]]]:
        """(key type, value type, tests of one depth), in llama-bench's order."""
        for ctk in self.ctk:
            for ctv in self.ctv:
                for depth in self.depths:
                    yield ctk, ctv, self.tests(depth)

    def __len__(self) -> int:
        """How many results there will be."""
        return sum(len(tests) for _, _, tests in self.cases())

    def check(self, n_ctx: int) -> None:
        """Raise InputError if a test does not fit a context of `n_ctx` tokens."""
        for depth in self.depths:
            for test in self.tests(depth):
                if depth + test.tokens > n_ctx:
                    raise InputError(
                        f"{test.name}: takes {depth + test.tokens} tokens, "
                        f"the model's context is {n_ctx}"
                    )


@dataclass(frozen=True)
class Result:
    """One test's samples: nanoseconds of each repetition.  `started` is in seconds since 1970."""

    ctk: str
    ctv: str
    test: Workload
    samples_ns: tuple[int, ...]
    started: float

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [1e9 * self.test.tokens / ns for ns in self.samples_ns]


def mean_and_deviation(samples: Sequence[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation, 0 for a single sample."""
    return statistics.fmean(samples), statistics.stdev(samples) if len(samples) > 1 else 0.0


def measure(model: Model, plan: Plan, tell: Tell) -> Iterator[Result]:
    """Yield each result when it is there.  `tell` hears of every step.

    Raises InputError if a test does not fit the model's context.
    """
    plan.check(model.spec.n_ctx_train)
    for ctk, ctv, tests in plan.cases():
        bench = _Bench(model, ctk, ctv, plan.sink, tests)
        for test in tests:
            started = time.time()
            name = f"{ctk}/{ctv} {test.name}"
            samples = bench.samples(test, plan.repetitions, partial(tell, name))
            yield Result(ctk, ctv, test, tuple(samples), started)


class _Bench:
    """A session for the tests of one depth; the tokens of that depth stay cached between them."""

    def __init__(
        self, model: Model, ctk: str, ctv: str, sink: int, tests: Sequence[Workload]
    ) -> None:
        depth, longest = tests[0].n_depth, max(test.tokens for test in tests)
        self.session = Session(model, n_ctx=depth + longest, ctk=ctk, ctv=ctv, sink=sink)
        # the same tokens in every run of every process
        ids = np.random.default_rng(42).integers(model.spec.n_vocab, size=depth + longest).tolist()
        self.prefix, self.fresh = ids[:depth], ids[depth:]

    def samples(
        self, test: Workload, repetitions: int, tell: Callable[[str], None]
    ) -> Iterator[int]:
        """Nanoseconds of each repetition, after a warm-up run."""
        self._return_to_depth(tell)
        tell("warm-up")
        self._run(Workload(test.n_prompt, min(test.n_gen, 1)))
        for number in range(1, repetitions + 1):
            self._return_to_depth(tell)
            tell(f"run {number} of {repetitions}")
            start = time.perf_counter_ns()
            self._run(test)
            yield time.perf_counter_ns() - start

    def _run(self, test: Workload) -> None:
        if test.n_prompt:
            self.session.extend(self.fresh[: test.n_prompt])
        for token in self.fresh[test.n_prompt : test.tokens]:
            self.session.extend([token])

    def _return_to_depth(self, tell: Callable[[str], None]) -> None:
        """Let the cache hold the prefix and nothing else.

        Page formats forget back to a page boundary and sliding windows may forget everything: what
        is missing is read again.
        """
        self.session.truncate(len(self.prefix))
        missing = self.prefix[len(self.session.tokens) :]
        if missing:
            tell(f"filling {len(missing)} tokens")
            self.session.extend(missing)
