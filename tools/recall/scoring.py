"""How much of a function an answer holds, line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal

from tools.recall.function import PRIMARY

PASS = 8  # lines of the primary ones that a passed target needs
_EMPTY_THINK = re.compile(r"\s*<think>\s*</think>")

Kind = Literal["matched", "missing", "bonus", "hallucinated", "blank"]


@dataclass(frozen=True)
class Score:
    """`lines` are those expected and those produced in one order, each with what became of it.

    "matched": asked for and there; "missing": asked for and not there; "bonus": a further line of
    the function; "hallucinated": not a line of the function; "blank": produced but empty, which is
    held against nobody.  `matched_blank` of the matched lines are empty.
    """

    lines: tuple[tuple[Kind, str], ...]

    @property
    def primary_matched(self) -> int:
        return self._count("matched")

    @property
    def matched_blank(self) -> int:
        return sum(kind == "matched" and not text.strip() for kind, text in self.lines)

    @property
    def bonus_matched(self) -> int:
        return self._count("bonus")

    @property
    def hallucinated(self) -> int:
        return self._count("hallucinated")

    @property
    def passed(self) -> bool:
        return self.primary_matched >= PASS

    def _count(self, wanted: Kind) -> int:
        return sum(kind == wanted for kind, _ in self.lines)


def produced_text(answer: str) -> str:
    """The answer without a leading empty think block; empty if it holds nothing else."""
    return _EMPTY_THINK.sub("", answer, count=1) if _EMPTY_THINK.match(answer) else answer


def score(body: Sequence[str], answer: str, *, relax_indent: bool = False) -> Score:
    """Compare `answer` with the primary and bonus lines in `body`.

    Space at the end of a line never counts, with `relax_indent` that at its beginning neither.
    """
    norm: Callable[[str], str] = str.strip if relax_indent else str.rstrip
    expected = [norm(line) for line in body]
    lines = re.split("\r\n|\r|\n", produced_text(answer))
    produced = _outer_blanks(expected, _unfenced(expected, [norm(line) for line in lines]))
    return Score(tuple(_merged(expected, produced, _aligned(expected, produced))))


def _unfenced(expected: Sequence[str], lines: list[str]) -> list[str]:
    """What stands between the first and the last code fence; a lone fence is left out.

    A fence that the function itself holds is none.
    """
    own = set(expected)
    marked = [i for i, line in enumerate(lines) if line.lstrip().startswith("```")]
    fences = [i for i in marked if lines[i] not in own]
    if len(fences) > 1:
        return [line for i, line in enumerate(lines) if fences[0] < i < fences[-1]]
    return [line for i, line in enumerate(lines) if i not in fences]


def _outer_blanks(expected: Sequence[str], lines: list[str]) -> list[str]:
    """`lines` with as many blank ones at both ends as the primary lines have there.

    Chat models trim their answers: blank lines at the ends say nothing either way.  An end that
    differs from the function's gets none.
    """
    texts = _texts(lines)
    wanted = _texts(expected[:PRIMARY])
    if not texts or not wanted:
        return []
    kept = lines[texts[0] : texts[-1] + 1]
    before = wanted[0] if kept[0] == expected[wanted[0]] else 0
    after = PRIMARY - 1 - wanted[-1] if kept[-1] == expected[wanted[-1]] else 0
    return [""] * before + kept + [""] * after


def _aligned(expected: Sequence[str], produced: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (index in `expected`, index in `produced`) of equal lines, both rising.

    Lines with text are aligned first and blank ones between them: a double-spaced answer must not
    be torn apart by its blank lines, which are all alike.
    """
    a, b = _texts(expected), _texts(produced)
    matcher = SequenceMatcher(None, [expected[i] for i in a], [produced[j] for j in b], False)
    pairs = [
        (a[block.a + n], b[block.b + n])
        for block in matcher.get_matching_blocks()
        for n in range(block.size)
    ]
    blanks: list[tuple[int, int]] = []
    for (i, j), (i_end, j_end) in pairwise([(-1, -1), *pairs, (len(expected), len(produced))]):
        blanks += zip(
            (n for n in range(i + 1, i_end) if not expected[n]),
            (n for n in range(j + 1, j_end) if not produced[n]),
            strict=False,
        )
    return sorted(pairs + blanks)


def _texts(lines: Sequence[str]) -> list[int]:
    """Where the lines are that are not blank."""
    return [i for i, line in enumerate(lines) if line]


def _merged(
    expected: Sequence[str], produced: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> list[tuple[Kind, str]]:
    """Every line once, in order; bonus lines that are not there are not told of."""
    merged: list[tuple[Kind, str]] = []
    i = j = 0
    for i_next, j_next in [*pairs, (len(expected), len(produced))]:
        for line in expected[i : min(i_next, PRIMARY)]:
            merged.append(("missing", line))
        for line in produced[j:j_next]:
            merged.append(("hallucinated" if line else "blank", line))
        if i_next < len(expected):
            merged.append(("matched" if i_next < PRIMARY else "bonus", expected[i_next]))
        i, j = i_next + 1, j_next + 1
    return merged
