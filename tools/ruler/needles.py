"""Tasks of single facts in a text that has nothing to do with them.

Every task is a function of two random streams, the one of its needles and the one of its filler,
and of n, how much filler there is.  So the needles and their depths do not depend on the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tools.ruler.puzzle import Puzzle, Question
from tools.ruler.words import codes, keys, near_keys, scatter, sentences, variables

NEAR = 16  # keys that differ in one digit: as many needles as a small model still tells apart
QUERIES = 4  # of the needles of `multiquery`, and codes of a key in `multivalue`
HOPS = 2  # assignments that a value goes through in `tracking`

_INTRODUCTION = (
    "Access codes are hidden in the following text. Remember them exactly: "
    "you will be asked about them afterwards."
)


def single(stream: Random, filler: Random, n: int) -> Puzzle:
    """One needle: what a model can do at all."""
    return _one_of_each(keys(stream, 1), 1, stream, sentences(filler, n))


def multikey(stream: Random, filler: Random, n: int) -> Puzzle:
    """Needles whose keys differ in one digit; one is asked for."""
    return _one_of_each(near_keys(stream, NEAR), 1, stream, sentences(filler, n))


def multiquery(stream: Random, filler: Random, n: int) -> Puzzle:
    """Needles whose keys have nothing in common; half of them are asked for, one by one."""
    return _one_of_each(keys(stream, 2 * QUERIES), QUERIES, stream, sentences(filler, n))


def multivalue(stream: Random, filler: Random, n: int) -> Puzzle:
    """Two keys with several codes each; all codes of one are asked for at once."""
    key, other = keys(stream, 2)
    needles = codes(stream, 2 * QUERIES)
    facts = [
        f"One access code of the {name} is {code}."
        for name, code in zip([key, other] * QUERIES, needles, strict=True)
    ]
    question = Question(
        f"What are all {QUERIES} access codes of the {key}? "
        "Answer with the exact codes only, one per line.",
        f"The {QUERIES} access codes of the {key}, separated by commas, are",
        tuple(needles[::2]),
    )
    source = _source(facts, stream, sentences(filler, n))
    return Puzzle(source, (question,), tuple(needles))


def tracking(stream: Random, filler: Random, n: int) -> Puzzle:
    """Two chains of variables, each given the value of the one before; one chain is asked for."""
    names = variables(stream, 2 * (HOPS + 1))
    chains = (names[::2], names[1::2])
    values = stream.sample(range(10_000, 100_000), 2)
    turns = [0, 1] * (HOPS + 1)
    stream.shuffle(turns)
    given = [iter([f"{value}", *chain]) for value, chain in zip(values, chains, strict=True)]
    named = [iter(chain) for chain in chains]
    facts = [f"The variable {next(named[turn])} is set to {next(given[turn])}." for turn in turns]
    question = Question(
        f"Which {HOPS + 1} variables have the value {values[0]}, set directly or through another "
        "variable? Answer with the names of the variables only, one per line.",
        f"The {HOPS + 1} variables that have the value {values[0]}, separated by commas, are",
        tuple(chains[0]),
    )
    # a variable must be set before it is used
    depths = sorted(stream.random() for _ in facts)
    introduction = (
        "Assignments of variables are hidden in the following text. Keep track of them: "
        "you will be asked about them afterwards."
    )
    text = scatter(facts, depths, sentences(filler, n))
    return Puzzle(f"{introduction}\n\n{text}", (question,), tuple(names))


def _one_of_each(names: Sequence[str], asked: int, stream: Random, filler: list[str]) -> Puzzle:
    """A code per name, and questions for the first `asked` of them."""
    needles = codes(stream, len(names))
    facts = [
        f"The access code of the {name} is {code}."
        for name, code in zip(names, needles, strict=True)
    ]
    questions = tuple(
        Question(
            f"What is the access code of the {name}? Answer with the exact code only.",
            f"The access code of the {name} is",
            (code,),
        )
        for name, code in zip(names[:asked], needles, strict=False)
    )
    return Puzzle(_source(facts, stream, filler), questions, tuple(needles))


def _source(facts: Sequence[str], stream: Random, filler: Sequence[str]) -> str:
    depths = [stream.random() for _ in facts]
    return f"{_INTRODUCTION}\n\n{scatter(facts, depths, filler)}"
