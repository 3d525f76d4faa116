"""Lists of numbers on a command line, as llama-bench takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from engine import InputError

MOST_NUMBERS = 1000  # in one list: far more than anyone waits for


_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?")


def numbers(option: str, lists: Sequence[str]) -> tuple[int, ...]:
    """The numbers of llama-bench's lists: 512 or 128,256 or 0-4096+1024 or 128-1024*2.

    Raises InputError naming `option` for anything else.
    """
    found: list[int] = []
    for part in (part for text in lists for part in text.split(",")):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise InputError(
                f"{option} {part!r}: not a number or a range such as 0-4096+1024 or 128-1024*2"
            )
        first, last, sign, step = match.groups()
        found += _range(option, part, int(first), int(last or first), sign or "+", int(step or 1))
        if len(found) > MOST_NUMBERS:
            raise InputError(f"{option}: more than {MOST_NUMBERS} numbers")
    return tuple(found)


def _range(option: str, text: str, first: int, last: int, sign: str, step: int) -> Iterator[int]:
    if last < first or (first + step if sign == "+" else first * step) <= first:
        raise InputError(f"{option} {text!r}: the range does not go up")
    value = first
    for _ in range(MOST_NUMBERS + 1):
        if value > last:
            return
        yield value
        value = value + step if sign == "+" else value * step


def pair(text: str) -> tuple[int, int]:
    """Tokens of prompt and generation of one -pg, such as 512,128.  Raises InputError."""
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9})", text.strip())
    if match is None:
        raise InputError(f"-pg {text!r}: not a prompt and a generation such as 512,128")
    return int(match[1]), int(match[2])
