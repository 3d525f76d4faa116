"""Seeded text: sentences that mean nothing, and names, codes and words that occur nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from random import Random
from string import ascii_uppercase


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_ADJECTIVES = _listed(
    "old young tall quiet tired clever careful hungry polite famous lonely cheerful rich busy "
    "patient nervous honest modest lazy friendly"
)
_PEOPLE = _listed(
    "baker farmer teacher sailor painter doctor carpenter gardener tailor miller lawyer singer "
    "porter barber fisherman librarian soldier clerk potter weaver"
)
_VERBS = _listed(
    "carried painted found bought repaired borrowed forgot cleaned sold dropped counted noticed "
    "measured lifted wrapped described returned hid lost moved"
)
_THINGS = _listed(
    "ladder basket lamp chair blanket wagon bottle hammer kettle mirror letter coat barrel drum "
    "rope table candle bucket shovel clock"
)
_PLACES = _listed(
    "harbor market bridge river station garden church mill forest square cellar meadow tower "
    "kitchen library workshop tavern stable school valley"
)
_LINKS = _listed("near behind beside outside")

# what needles are named after: nothing of the sentences above
_COLOURS = _listed(
    "amber azure crimson emerald golden indigo ivory jade olive orange purple scarlet silver teal "
    "turquoise violet"
)
_BIRDS = _listed(
    "kestrel heron falcon sparrow pelican osprey magpie plover raven swallow thrush wren condor "
    "egret finch ibis"
)
_SYLLABLES = [c + v for c, v in product("bdfgklmnprstvz", "aeiou")]


def sentences(stream: Random, n: int) -> list[str]:
    """From equal streams the first n are the same whatever n is."""
    pick = stream.choice
    return [
        f"The {pick(_ADJECTIVES)} {pick(_PEOPLE)} {pick(_VERBS)} a {pick(_THINGS)} "
        f"{pick(_LINKS)} the {pick(_PLACES)}."
        for _ in range(n)
    ]


def scatter(facts: Sequence[str], depths: Sequence[float], filler: Sequence[str]) -> str:
    """One text of the filler with each fact at its depth, from 0 the beginning to 1 the end."""
    parts: list[str] = []
    done = 0
    for depth, fact in sorted(zip(depths, facts, strict=True)):
        place = int(depth * (len(filler) + 1))
        parts += [*filler[done:place], fact]
        done = place
    return " ".join([*parts, *filler[done:]])


def keys(stream: Random, n: int) -> list[str]:
    """Names that have nothing in common, such as "amber kestrel 481"; n at most 16."""
    colours, birds = stream.sample(_COLOURS, n), stream.sample(_BIRDS, n)
    return [
        f"{colour} {bird} {stream.randrange(100, 1000)}"
        for colour, bird in zip(colours, birds, strict=True)
    ]


def near_keys(stream: Random, n: int) -> list[str]:
    """A name and n - 1 others that differ from it in one digit; n at most 24."""
    (key,) = keys(stream, 1)
    digits = key[-3:]
    others = [
        digits[:i] + digit + digits[i + 1 :]
        for i in range(3)
        for digit in "123456789"
        if digit != digits[i]
    ]
    return [key, *(key[:-3] + other for other in stream.sample(others, n - 1))]


def codes(stream: Random, n: int) -> list[str]:
    """Codes of three groups of four digits; no group occurs twice."""
    groups = list(map(str, stream.sample(range(1000, 10_000), 3 * n)))
    return ["-".join(groups[i : i + 3]) for i in range(0, 3 * n, 3)]


def variables(stream: Random, n: int) -> list[str]:
    """Names of two groups of three capital letters; no group occurs twice."""
    groups: list[str] = []
    while len(groups) < 2 * n:
        group = "".join(stream.sample(ascii_uppercase, 3))
        if group not in groups:
            groups.append(group)
    return ["_".join(groups[i : i + 2]) for i in range(0, 2 * n, 2)]


def new_words(stream: Random, n: int) -> list[str]:
    """Different words of three syllables in no language."""
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(stream.choices(_SYLLABLES, k=3))] = None
    return list(found)
