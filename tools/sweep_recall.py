"""Recall as a figure of a grid: the same random functions asked of every pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.recall.answer import Answerer
from tools.recall.function import PRIMARY
from tools.recall.outcome import Summary
from tools.recall.prompt import message
from tools.recall.random_bodies import RandomBodies
from tools.recall.run import ask
from tools.recall.sampling import sample
from tools.results import Pair

LIMIT = 1024  # most tokens of an answer
_FEW = RandomBodies(functions=8)


@dataclass(frozen=True)
class RecallSettings:
    """What is asked: at most `k` functions of a corpus of random bodies.

    200 of them, the corpus of minikv recall, exceed most contexts.
    """

    bodies: RandomBodies = _FEW
    k: int = 16

    def __str__(self) -> str:
        b = self.bodies
        return (
            f"random-bodies functions={b.functions} value_len={b.value_len} "
            f"confusable={b.confusable} seed={b.seed} k={self.k} max_tokens={LIMIT}"
        )


class Recall:
    """Recall measured on one pair after another; `connect` makes the pair's answerer."""

    def __init__(self, settings: RecallSettings, connect: Callable[[Pair], Answerer]) -> None:
        self.settings, self._connect = settings, connect
        self._corpus = settings.bodies.corpus()
        # its default seed: that of a sweep may change between two runs that share a file
        self._targets = sample(self._corpus, settings.k)

    def messages(self) -> list[str]:
        """All prompts."""
        return [message(self._corpus, target) for target in self._targets]

    def measure(self, pair: Pair) -> dict[str, Any]:
        """The figures of `pair` as JSON values.

        Targets that got no answer, and greedy decoding would give none the next time either, are in
        no figure but the count of errors.  `recall` is the share of targets that
        passed, `recall_lines` that of the lines asked for, both None if no target was answered;
        `recall_targets` are the lines matched by target, None for an error.
        """
        answerer = self._connect(pair)
        outcomes = [ask(self._corpus, target, answerer) for target in self._targets]
        scores = [outcome.score(False) for outcome in outcomes]
        found = Summary.of(scores)
        return {
            "recall": found.passed / found.scored if found.scored else None,
            "recall_lines": (
                found.primary_matched / (PRIMARY * found.scored) if found.scored else None
            ),
            "recall_passed": found.passed,
            "recall_scored": found.scored,
            "recall_errors": found.errors,
            "recall_hallucinated": found.hallucinated,
            "recall_targets": {
                outcome.function.name: None if score is None else score.primary_matched
                for outcome, score in zip(outcomes, scores, strict=True)
            },
        }
