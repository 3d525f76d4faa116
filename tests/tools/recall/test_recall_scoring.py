"""Scores obey the invariants of the specification, whatever the body looks like."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.recall.corpus import load
from tools.recall.outcome import Summary
from tools.recall.scoring import Score, produced_text, score

BODY = [f"    line {i}" if i % 5 else "" for i in range(1, 61)]
PRIMARY = BODY[:20]
TEXT = [line for line in PRIMARY if line]
# bodies with many equal and many blank lines, the hard ones to align
BODIES = st.lists(st.sampled_from(["", "    }", "    x = 1", "\ty()"]), min_size=20, max_size=60)


def counts(scored: Score) -> tuple[int, int, bool]:
    return scored.primary_matched, scored.hallucinated, scored.passed


PERFECT = {
    "plain": "\n".join,
    "fenced": lambda lines: "```python\n" + "\n".join(lines) + "\n```",
    "told and fenced": lambda lines: "Here:\n\n```\n" + "\n".join(lines) + "\n```\nDone.",
    "double-spaced": "\n\n".join,
    "trimmed": lambda lines: "\n".join(lines).strip("\n"),
    "framed by blank lines": lambda lines: "\n\n" + "\n".join(lines) + "\n\n\n",
    "space at line ends": lambda lines: "".join(f"{line}  \r\n" for line in lines),
    "after an empty think block": lambda lines: "<think>\n\n</think>\n\n" + "\n".join(lines),
    "double-spaced and fenced": lambda lines: "```\n" + "\n\n".join(lines) + "\n```",
}


@pytest.mark.parametrize("form", PERFECT.values(), ids=PERFECT.keys())
@settings(max_examples=60)
@given(body=BODIES)
def test_a_perfect_answer_is_20_lines_and_no_hallucination(form, body) -> None:
    if not any(body[:20]):
        return
    for wanted in (body[:20], body):
        scored = score(body, form(wanted))
        assert counts(scored) == (20, 0, True)


def test_a_perfect_answer_is_perfect_for_every_function_of_the_standard_librarys_http() -> None:
    for function in load(["stdlib:http"]).functions:
        body = function.primary + function.bonus
        for form in PERFECT.values():
            assert counts(score(body, form(function.primary))) == (20, 0, True)


def test_15_right_lines_with_3_false_ones_inside() -> None:
    body = [f"    line {i}" for i in range(60)]
    answer = body[:7] + ["    false"] * 2 + body[7:11] + ["    wrong"] + body[11:15]
    assert counts(score(body, "\n".join(answer))) == (15, 3, True)


def test_passing_takes_8_lines() -> None:
    body = [f"    line {i}" for i in range(20)]
    assert [score(body, "\n".join(body[:n])).passed for n in (7, 8)] == [False, True]


def test_further_lines_of_the_function_are_a_bonus_and_lines_after_them_are_not() -> None:
    scored = score(BODY, "\n".join([*BODY, "    beyond"]))
    assert counts(scored) == (20, 1, True)
    assert scored.bonus_matched == 40


def test_blank_lines_of_an_answer_are_never_hallucinated_and_counted_apart() -> None:
    scored = score(PRIMARY, "a\n\n\nb\n\n\n\n\nc")
    assert counts(scored) == (4, 3, False)
    assert scored.matched_blank == 4 == scored.primary_matched


def test_an_answer_of_other_lines_gets_no_blank_lines_for_free() -> None:
    assert score(["", *TEXT, "", "", "", ""], "wrong").primary_matched == 0


def test_indentation_counts_unless_relaxed() -> None:
    answer = "\n".join(line.strip() for line in PRIMARY)
    assert score(BODY, answer).hallucinated == len(TEXT)
    assert counts(score(BODY, answer, relax_indent=True)) == (20, 0, True)


def test_a_fence_of_the_functions_own_is_a_line_like_any() -> None:
    body = ["    '''Doc:", "    ```", "    code", "    ```", *(f"    {i}" for i in range(16))]
    assert counts(score(body, "\n".join(body))) == (20, 0, True)


def test_a_lone_fence_is_left_out() -> None:
    assert counts(score(BODY, "```python\n" + "\n".join(PRIMARY))) == (20, 0, True)


@pytest.mark.parametrize("answer", ["", "\n \n", "```\n```", "<think>\n</think>"])
def test_an_answer_without_text_matches_nothing(answer: str) -> None:
    assert counts(score(BODY, answer)) == (0, 0, False)


def test_only_an_empty_think_block_at_the_beginning_is_left_out() -> None:
    assert produced_text("<think> \n</think>a") == "a"
    for kept in ("<think>hm</think>a", "a<think></think>"):
        assert produced_text(kept) == kept


@given(body=BODIES, answer=st.lists(st.sampled_from(["", "    }", "    x = 1", "z", "```"])))
def test_every_line_is_told_of_exactly_once(body: list[str], answer: list[str]) -> None:
    scored = score(body, "\n".join(answer))
    kinds = [kind for kind, _ in scored.lines]
    assert kinds.count("matched") + kinds.count("missing") == 20 or not any(body[:20])
    wanted = [line for kind, line in scored.lines if kind in ("matched", "missing")]
    assert wanted in (body[:20], [])


def test_errors_are_in_no_count_but_their_own() -> None:
    summary = Summary.of([score(BODY, "\n".join(PRIMARY)), None, score(BODY, "wrong")])
    assert (summary.targets, summary.scored, summary.errors, summary.passed) == (3, 2, 1, 1)
    assert summary.as_data()["primary_total"] == 40
    assert Summary.of([None]).as_data()["pass_rate"] is None
