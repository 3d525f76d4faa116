"""What an answer holds: the strings asked for, those of other needles, and mixtures of needles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tools.recall.scoring import produced_text
from tools.ruler.puzzle import Question

# strings of several groups, as the codes and the names of variables are
_GROUPED = re.compile(r"[0-9A-Za-z]+(?:[-_][0-9A-Za-z]+)+")


@dataclass(frozen=True)
class Score:
    """`found` of the `expected` strings are there, and `others` that belong to other needles.

    `fused` counts strings that are no needle but have groups of two or more: a value that was
    read at several places at once.
    """

    expected: int
    found: int
    others: int
    fused: int

    @property
    def passed(self) -> bool:
        """All that was asked for is there, and nothing of another needle."""
        return self.found == self.expected and not self.others and not self.fused


def score(question: Question, needles: Sequence[str], answer: str, first_line: bool) -> Score:
    """Compare `answer` with what is expected; upper and lower case are the same.

    With `first_line` the rest is ignored: a model that completes text does not know where to stop.
    """
    text = produced_text(answer).strip()
    if first_line:
        text = text.partition("\n")[0]
    there = {needle for needle in needles if _holds(text, needle)}
    found = there & set(question.expected)
    return Score(
        expected=len(question.expected),
        found=len(found),
        others=len(there - found),
        fused=sum(_is_fused(word, needles) for word in set(_GROUPED.findall(text))),
    )


def _holds(text: str, needle: str) -> bool:
    """Whether `needle` stands in `text`, not as a part of something longer."""
    pattern = rf"(?<!\w)(?<!\w[-_]){re.escape(needle)}(?!\w)(?![-_]\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def _is_fused(word: str, needles: Sequence[str]) -> bool:
    """Whether groups of `word` are those of needles at the same place, but of no single one."""
    groups = _groups(word)
    whole = [_groups(needle) for needle in needles]
    owners = [
        {j for j, needle in enumerate(whole) if i < len(needle) and needle[i] == group}
        for i, group in enumerate(groups)
    ]
    owned = [each for each in owners if each]
    return len(owned) > 1 and not set.intersection(*owned)


def _groups(word: str) -> list[str]:
    return re.split("[-_]", word.upper())
