"""The choice of functions is spread over the source and the same for the same seed."""

from __future__ import annotations

import hashlib
import keyword
import random
import re

import pytest

from engine import InputError
from tools.recall.corpus import PYTHON, Corpus, from_texts
from tools.recall.function import Function
from tools.recall.random_bodies import RandomBodies
from tools.recall.sampling import sample

BODY = ("x",) * 20


def corpus(starts: list[int], lines: int) -> Corpus:
    functions = tuple(Function(f"f{start}", start, "", BODY) for start in starts)
    return Corpus("\n" * (lines - 1), PYTHON, ("a.py",), functions)


def test_at_most_k_functions_are_all_taken_in_their_order() -> None:
    few = corpus([70, 5, 40], 100)
    assert sample(few, k=3) == list(few.functions)


def test_every_stretch_with_functions_gives_one_before_any_gives_two() -> None:
    # stretches of about 33 lines: three functions in the first, one in the second, none after
    chosen = sample(corpus([2, 3, 4, 40], 100), k=3)
    assert sum(f.start_line < 33 for f in chosen[:2]) == 1
    assert {f.start_line for f in chosen} >= {40}
    assert len(set(chosen)) == 3


def test_the_choice_follows_the_stated_recipe() -> None:
    starts = sorted(random.Random(1).sample(range(1, 1000), 90))
    k, seed, stream = 16, 7, random.Random(7)
    stretches = {i: [s for s in starts if min(k - 1, s * k // 1000) == i] for i in range(k)}
    expected = [stream.choice(stretch) for stretch in stretches.values() if stretch]
    rest = [s for s in starts if s not in expected]
    stream.shuffle(rest)
    while len(expected) < k:
        expected.append(rest.pop())
    # the order in which the corpus lists its functions does not matter
    shuffled = random.Random(2).sample(starts, len(starts))
    assert [f.start_line for f in sample(corpus(shuffled, 1000), k, seed)] == expected


def test_a_sample_of_none_is_refused() -> None:
    with pytest.raises(InputError, match="k 0"):
        sample(corpus([1], 10), k=0)


def test_random_bodies_are_these_bytes() -> None:
    made = RandomBodies(functions=200, value_len=24, seed=42)
    assert hashlib.sha256(made.text().encode()).hexdigest().startswith("28e23119162d")
    assert 200_000 < len(made.text()) < 210_000
    assert made.text() == RandomBodies().text() != RandomBodies(seed=43).text()


@pytest.mark.parametrize("confusable", [1, 2, 8])
def test_random_bodies_are_functions_of_24_assignments(confusable: int) -> None:
    made = RandomBodies(functions=20, value_len=5, confusable=confusable).corpus()
    assert len(made.functions) == 20
    words = [f.name for f in made.functions]
    for f in made.functions:
        assert len(f.body) == 24
        own = [re.fullmatch(r' {4}([a-z]{8}) = "[A-Za-z0-9]{5}"', line) for line in f.body]
        own_words = [match[1] for match in own if match]
        assert len(set(own_words)) == 24
        words += own_words
    assert not any(map(keyword.iskeyword, words))
    names, identifiers = words[:20], words[20:]
    for kind in (names, identifiers):
        assert len({word[: 8 - confusable] for word in kind}) == 1
        assert len({word[8 - confusable] for word in kind}) > 1
    assert names[0][: 8 - confusable] != identifiers[0][: 8 - confusable] or confusable == 8


@pytest.mark.parametrize(
    "knobs",
    [
        {"functions": 0},
        {"value_len": 0},
        {"value_len": 10**9},
        {"functions": 10**9},
        {"confusable": 0},
        {"confusable": 9},
        {"seed": -1},
        {"functions": 27, "confusable": 1},
    ],
    ids=str,
)
def test_knobs_out_of_range_are_refused(knobs: dict[str, int]) -> None:
    with pytest.raises(InputError, match=str(next(iter(knobs.values())))):
        RandomBodies(**knobs)


def test_a_text_in_memory_is_a_corpus_too() -> None:
    body = "".join(f"    a{i} = 1\n" for i in range(20))
    assert from_texts(PYTHON, {"a.py": f"def f():\n{body}"}).functions[0].name == "f"
