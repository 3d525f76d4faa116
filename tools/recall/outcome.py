"""What came of one target, and of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tools.rates import wilson
from tools.recall.answer import Answer
from tools.recall.function import PRIMARY, Function
from tools.recall.scoring import Score, score


@dataclass(frozen=True)
class Outcome:
    """One target: either an answer or, in `error`, the line that says why there is none.

    An answer that is empty has both: it is kept, and not scored.
    """

    function: Function
    task: str
    answer: Answer | None = None
    error: str | None = None

    def score(self, relax_indent: bool) -> Score | None:
        """None for an error."""
        if self.answer is None or self.error is not None:
            return None
        body = self.function.primary + self.function.bonus
        return score(body, self.answer.text, relax_indent=relax_indent)

    def as_data(self, relax_indent: bool) -> dict[str, Any]:
        """JSON values: all that scoring needs, and the score."""
        f, scored = self.function, self.score(relax_indent)
        return {
            "name": f.name,
            "file": f.file,
            "start_line": f.start_line,
            "anchor": f.anchor,
            "body": [*f.primary, *f.bonus],
            "task": self.task,
            "answer": None if self.answer is None else asdict(self.answer),
            "error": self.error,
            "score": None if scored is None else _score_data(scored),
        }

    @staticmethod
    def from_data(data: Any) -> Outcome:
        """The outcome that `as_data` told.  Raises ValueError when `data` is nothing like it."""
        try:
            body = tuple(data["body"])
            texts = (*body, data["name"], data["anchor"], data["file"], data["task"])
            answer = None if data["answer"] is None else Answer(**data["answer"])
            if answer is not None:
                texts += (answer.text, answer.finish)
            if len(body) < PRIMARY or not all(isinstance(text, str) for text in texts):
                raise ValueError("no function body")
            if not isinstance(data["error"], str | None) or answer is data["error"]:
                raise ValueError("neither an answer nor an error")
            function = Function(
                data["name"], int(data["start_line"]), data["anchor"], body, data["file"]
            )
            return Outcome(function, data["task"], answer, data["error"])
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Summary:
    """Counts over the targets; those that ended in an error are in `errors` alone."""

    targets: int
    errors: int
    passed: int
    primary_matched: int
    matched_blank: int
    bonus_matched: int
    hallucinated: int

    @staticmethod
    def of(scores: Iterable[Score | None]) -> Summary:
        every = list(scores)
        done = [each for each in every if each is not None]
        return Summary(
            targets=len(every),
            errors=len(every) - len(done),
            passed=sum(each.passed for each in done),
            primary_matched=sum(each.primary_matched for each in done),
            matched_blank=sum(each.matched_blank for each in done),
            bonus_matched=sum(each.bonus_matched for each in done),
            hallucinated=sum(each.hallucinated for each in done),
        )

    @property
    def scored(self) -> int:
        return self.targets - self.errors

    def as_data(self) -> dict[str, Any]:
        low, high = wilson(self.passed, self.scored)
        return asdict(self) | {
            "scored": self.scored,
            "primary_total": PRIMARY * self.scored,
            "pass_rate": self.passed / self.scored if self.scored else None,
            "pass_rate_low": low,
            "pass_rate_high": high,
        }


def _score_data(scored: Score) -> dict[str, Any]:
    return {
        "primary_matched": scored.primary_matched,
        "matched_blank": scored.matched_blank,
        "bonus_matched": scored.bonus_matched,
        "hallucinated": scored.hallucinated,
        "passed": scored.passed,
    }
