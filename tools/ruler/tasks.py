"""The family of tasks, each made as long as the context allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from random import Random

from engine.errors import InputError
from tools.ruler.aggregation import common, frequent
from tools.ruler.needles import multikey, multiquery, multivalue, single, tracking
from tools.ruler.puzzle import Puzzle

Maker = Callable[[Random, Random, int], Puzzle]

TASKS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (single, multikey, multivalue, multiquery, tracking, common, frequent)
}


def chosen(names: Sequence[str]) -> list[str]:
    """The tasks called `names`, all if there are none; InputError names one that is unknown."""
    for name in names:
        if name not in TASKS:
            raise InputError(f"--tasks {name}: not a task. Choose from: {', '.join(TASKS)}")
    return list(dict.fromkeys(names)) or list(TASKS)


class Fitter:
    """Puzzles whose prompts have as many tokens as possible, and at most `room`.

    `count` tells the tokens of a message.  The same `seed` gives the same needles at any length,
    whatever other tasks and indices are asked for.
    """

    def __init__(self, seed: int, room: int, completes: bool, count: Callable[[str], int]) -> None:
        self._seed, self._room, self._completes, self._count = seed, room, completes, count

    def check(self, task: str) -> None:
        """Raise InputError when even the shortest puzzle is too long."""
        needed = self._tokens(task, 0, 0)
        if needed > self._room:
            raise InputError(
                f"task {task}: its shortest prompt has {needed} tokens, and the context takes "
                f"{self._room} beside the answer; raise -c or leave the task out"
            )

    def puzzle(self, task: str, index: int) -> Puzzle:
        """Number `index` of `task`."""
        too_much = 1
        while self._tokens(task, index, too_much) <= self._room:
            too_much *= 2
        fits = bisect_right(range(too_much), self._room, key=lambda n: self._tokens(task, index, n))
        return self._make(task, index, max(fits - 1, 0))

    def _make(self, task: str, index: int, n: int) -> Puzzle:
        name = f"{self._seed} {task} {index}"
        return TASKS[task](Random(name), Random(f"{name} filler"), n)

    def _tokens(self, task: str, index: int, n: int) -> int:
        """Of the longest prompt."""
        puzzle = self._make(task, index, n)
        return max(self._count(puzzle.message(q, self._completes)) for q in puzzle.questions)
