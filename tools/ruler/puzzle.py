"""What a task asks: a long text, questions about it, and the strings that answer them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A right answer holds every string of `expected`.

    `lead` is how an answer may begin, for models that complete text instead of answering: they are
    scored by the rest of its line.
    """

    text: str
    lead: str
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Puzzle:
    """`needles` are all strings that could be taken for an answer, the right ones among them."""

    source: str
    questions: tuple[Question, ...]
    needles: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()

    def message(self, question: Question, completes: bool) -> str:
        """The prompt: the source first, so that all questions share what is computed for it."""
        asked = f"{self.source}\n\n{question.text}"
        return f"{asked}\n\n{question.lead}" if completes else asked
