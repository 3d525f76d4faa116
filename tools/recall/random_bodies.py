"""A corpus that nobody can have learnt by heart: functions of random assignments."""

from __future__ import annotations

import keyword
import random
import string
from dataclasses import dataclass

from engine.errors import InputError
from tools.recall.corpus import PYTHON, Corpus, from_texts
from tools.recall.function import PRIMARY

NAME = 8  # characters of a name and of an identifier
_LETTERS = string.ascii_lowercase
_VALUE = string.ascii_letters + string.digits


@dataclass(frozen=True)
class RandomBodies:
    """The knobs; the same ones give the same bytes.

    With `confusable` E all function names share all but their last E characters, and so do all
    identifiers, each kind with a beginning of its own.  Raises InputError for a knob out of range.
    """

    functions: int = 200
    value_len: int = 24
    seed: int = 42
    confusable: int = NAME
    body_lines: int = 24

    def __post_init__(self) -> None:
        _check("functions", self.functions, 1, 10_000)
        _check("value-len", self.value_len, 1, 1000)
        _check("seed", self.seed, 0, (1 << 63) - 1)
        _check("confusable", self.confusable, 1, NAME)
        _check("body lines", self.body_lines, PRIMARY, len(_LETTERS))
        if self.functions > len(_LETTERS) ** self.confusable:
            raise InputError(
                f"confusable {self.confusable}: {self.functions} functions need more names than "
                f"the {len(_LETTERS) ** self.confusable} there are; raise it or lower functions"
            )

    def corpus(self) -> Corpus:
        return from_texts(PYTHON, {"random_bodies.py": self.text()})

    def text(self) -> str:
        """Python source: functions, two empty lines between them."""
        stream = random.Random(self.seed)
        names = _Names(stream, self.confusable)
        identifiers = _Names(stream, self.confusable)
        taken: set[str] = set()
        parts = []
        for _ in range(self.functions):
            lines = [f"def {names.new(taken)}():\n"]
            own: set[str] = set()
            for _ in range(self.body_lines):
                value = "".join(stream.choice(_VALUE) for _ in range(self.value_len))
                lines.append(f'    {identifiers.new(own)} = "{value}"\n')
            parts.append("".join(lines))
        return "\n\n".join(parts)


class _Names:
    """Random words of NAME letters that differ in the last `free` of them."""

    def __init__(self, stream: random.Random, free: int) -> None:
        self._stream, self._free = stream, free
        self._shared = "".join(stream.choice(_LETTERS) for _ in range(NAME - free))

    def new(self, taken: set[str]) -> str:
        """A word that is not in `taken`, and now is."""
        while True:
            end = "".join(self._stream.choice(_LETTERS) for _ in range(self._free))
            word = self._shared + end
            if word not in taken and not keyword.iskeyword(word):
                taken.add(word)
                return word


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} {value}: must be {low} to {high}")
