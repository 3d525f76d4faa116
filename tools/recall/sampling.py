"""Which functions to ask for: spread over the whole source, the same for the same seed."""

from __future__ import annotations

import random

from engine.errors import InputError
from tools.recall.corpus import Corpus
from tools.recall.function import Function


def sample(corpus: Corpus, k: int = 16, seed: int = 42) -> list[Function]:
    """At most `k` functions of `corpus` in the order of their choice.

    The source is cut into k stretches of equally many lines and one function chosen from each that
    has any; what is missing to k comes from the rest.
    """
    if k < 1:
        raise InputError(f"k {k}: must be 1 or more")
    if len(corpus.functions) <= k:
        return list(corpus.functions)
    stretches: list[list[Function]] = [[] for _ in range(k)]
    for function in sorted(corpus.functions, key=lambda f: f.start_line):
        stretches[min(k - 1, function.start_line * k // corpus.lines)].append(function)
    stream = random.Random(seed)
    chosen = [stream.choice(stretch) for stretch in stretches if stretch]
    rest = [f for stretch in stretches for f in stretch if f not in chosen]
    stream.shuffle(rest)
    while len(chosen) < k:
        chosen.append(rest.pop())
    return chosen
