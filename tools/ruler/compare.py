"""A cache beside the 16-bit one on the same trials: rates, a paired test, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tools.rates import mcnemar, wilson
from tools.ruler.record import Record, Trial
from tools.ruler.scoring import Score
from tools.ruler.tasks import TASKS

ALL = "all measurable"  # the name of the sum over tasks
SIGNIFICANT = 0.05
# A task that most trials fail even with 16 bits tells of the model, not of the cache.
CEILING = 0.5


@dataclass(frozen=True)
class Rate:
    """What came of `trials`, and of the strings asked for and answered in them."""

    trials: int
    passed: int
    expected: int
    found: int
    others: int
    fused: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of the rate of passed trials with 95 %."""
        return wilson(self.passed, self.trials)

    @property
    def unmeasurable(self) -> bool:
        """Whether even the upper end of the interval is a low ceiling."""
        return self.interval[1] < CEILING

    def as_data(self) -> dict[str, Any]:
        low, high = self.interval
        rate = self.passed / self.trials if self.trials else None
        return asdict(self) | {"rate": rate, "rate_low": low, "rate_high": high}


@dataclass(frozen=True)
class Comparison:
    """A task, or all of them, on the trials that both caches answered.

    `lost` trials passed with the base only, `gained` with the cache only; `errors` are trials that
    one of the two did not answer, which count nowhere else.
    """

    task: str
    base: Rate
    cache: Rate
    lost: int
    gained: int
    errors: int

    @property
    def p(self) -> float:
        """Of McNemar's exact test."""
        return mcnemar(self.lost, self.gained)

    @property
    def measurable(self) -> bool:
        """Whether a cache that lost every trial could be told from chance."""
        return not self.base.unmeasurable and mcnemar(self.base.passed, 0) < SIGNIFICANT

    @property
    def verdict(self) -> str:
        if not self.base.trials:
            return "nothing answered"
        if self.base.unmeasurable:
            return "unmeasurable on this model"
        if not self.measurable:
            return "too few trials"
        if self.p >= SIGNIFICANT:
            return "no difference seen"
        return "worse" if self.lost > self.gained else "better"

    def as_data(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "base": self.base.as_data(),
            "cache": self.cache.as_data(),
            "lost": self.lost,
            "gained": self.gained,
            "errors": self.errors,
            "mcnemar_p": self.p,
            "verdict": self.verdict,
        }


def compare(record: Record, cache: str) -> list[Comparison]:
    """Each task that has trials of both caches, and the sum over those that are measurable."""
    both = {record.base, cache}
    trials = [trial for trial in record.trials.values() if both <= trial.outcomes.keys()]
    asked = {trial.task for trial in trials}
    found = [
        _compared(task, record, cache, [trial for trial in trials if trial.task == task])
        for task in TASKS
        if task in asked
    ]
    measurable = {each.task for each in found if each.measurable}
    if len(measurable) > 1:
        summed = [trial for trial in trials if trial.task in measurable]
        found.append(_compared(ALL, record, cache, summed))
    return found


def _compared(task: str, record: Record, cache: str, trials: Sequence[Trial]) -> Comparison:
    pairs = [
        (base, other)
        for trial in trials
        if (base := trial.scores(record.base, record.first_line)) is not None
        and (other := trial.scores(cache, record.first_line)) is not None
    ]
    passes = [(_passed(base), _passed(other)) for base, other in pairs]
    return Comparison(
        task,
        _rate([base for base, _ in pairs]),
        _rate([other for _, other in pairs]),
        lost=passes.count((True, False)),
        gained=passes.count((False, True)),
        errors=len(trials) - len(pairs),
    )


def _rate(trials: Sequence[Sequence[Score]]) -> Rate:
    scores = [score for trial in trials for score in trial]
    return Rate(
        trials=len(trials),
        passed=sum(map(_passed, trials)),
        expected=sum(score.expected for score in scores),
        found=sum(score.found for score in scores),
        others=sum(score.others for score in scores),
        fused=sum(score.fused for score in scores),
    )


def _passed(scores: Sequence[Score]) -> bool:
    """A trial of several questions passes with all of them: they share a text, so they are no
    independent trials."""
    return all(score.passed for score in scores)
