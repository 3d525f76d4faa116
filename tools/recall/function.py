"""What every extractor finds: a named function and the lines of its body."""

from __future__ import annotations

from dataclasses import dataclass

PRIMARY = 20  # body lines that the model is asked for; a shorter body is no target
BONUS = 40  # further lines that are welcome but not asked for


@dataclass(frozen=True)
class Function:
    """`body` are source lines without line ends, at least PRIMARY of them.

    `anchor` is the source from the line where the function begins to the one before the body.
    `start_line` is the number of the body's first line, from 1, in the corpus.  `file` is the path
    that the corpus shows.
    """

    name: str
    start_line: int
    anchor: str
    body: tuple[str, ...]
    file: str = ""

    @property
    def primary(self) -> tuple[str, ...]:
        return self.body[:PRIMARY]

    @property
    def bonus(self) -> tuple[str, ...]:
        return self.body[PRIMARY : PRIMARY + BONUS]


def first_of_each_name(functions: list[Function]) -> list[Function]:
    """Those with enough lines; of several with one name, the first."""
    long_enough = [f for f in functions if len(f.body) >= PRIMARY]
    return list({f.name: f for f in reversed(long_enough)}.values())[::-1]
