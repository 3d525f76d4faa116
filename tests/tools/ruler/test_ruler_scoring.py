"""An answer is right by its exact strings; mixtures of needles are told from slips."""

from __future__ import annotations

import pytest

from tools.ruler.puzzle import Question
from tools.ruler.scoring import Score, score

A, B, C = NEEDLES = ("1111-2222-3333", "4444-5555-6666", "7777-8888-9999")
RIGHT, OTHER, FUSED, NOTHING = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)


def counts(scored: Score) -> tuple[int, int, int]:
    return scored.found, scored.others, scored.fused


def asked(*expected: str) -> Question:
    return Question("What?", "It is", expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (A, RIGHT),
        (f"The code is **{A}**.", RIGHT),
        (f"`{A}`\n{A}, -{A}", RIGHT),
        (f"<think>\n\n</think>\n\n{A}", RIGHT),
        (B, OTHER),
        (f"{A} or {B}", (1, 1, 0)),
        ("1111-2222-6666", FUSED),
        ("1111-5555-9999", FUSED),
        ("1111-5555", FUSED),
        ("1111-5555-0000, 4444-2222-3333", (0, 0, 2)),
        # a slip in one group is no mixture, and a group at another place is chance
        ("1111-2222-3334", NOTHING),
        ("1111-4444-0000", NOTHING),
        ("1111-2222", NOTHING),
        ("1111 2222 3333", NOTHING),
        # a part of something longer is something else
        (f"0{A}", NOTHING),
        (f"{A}-0000", NOTHING),
        (f"0000-{A}", NOTHING),
        ("well-known codes", NOTHING),
    ],
)
def test_exact_strings_count(answer: str, expected: tuple[int, int, int]) -> None:
    scored = score(asked(A), NEEDLES, answer, first_line=False)
    assert counts(scored) == expected
    assert scored.passed == (expected == RIGHT)


def test_all_strings_are_needed() -> None:
    question = asked(A, B)
    assert score(question, NEEDLES, f"{B}\n{A}", False) == Score(2, 2, 0, 0)
    half = score(question, NEEDLES, A, False)
    assert (half.found, half.passed) == (1, False)


def test_words_and_names_are_compared_in_any_case() -> None:
    names = ("QZF_RMB", "ABC_DEF", "tovaki")
    question = asked("QZF_RMB", "tovaki")
    assert score(question, names, "qzf_rmb, Tovaki", False).passed
    assert counts(score(question, names, "Tovaki and qzf_def", False)) == (1, 0, 1)


def test_of_a_completed_text_the_first_line_counts() -> None:
    answer = f" {A}.\nQuestion: what about {B}? 1111-5555-9999"
    assert score(asked(A), NEEDLES, answer, first_line=True).passed
    assert counts(score(asked(A), NEEDLES, answer, first_line=False)) == (1, 1, 1)
