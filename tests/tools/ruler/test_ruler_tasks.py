"""The tasks can be solved from their texts, repeat for a seed, and fill the room they are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from solver import characters, solve

from engine import InputError
from tools.ruler.needles import NEAR
from tools.ruler.tasks import TASKS, Fitter, chosen
from tools.ruler.words import near_keys, sentences

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("room", [2500, 20_000])
def test_every_question_has_one_answer_that_its_text_tells(task: str, room: int) -> None:
    for index in range(5):
        puzzle = characters(room=room).puzzle(task, index)
        for question in puzzle.questions:
            expected = set(question.expected)
            assert set(solve(puzzle.message(question, False))) == expected
            assert len(expected) == len(question.expected)
            assert expected <= set(puzzle.needles)
            assert all(needle in puzzle.source for needle in puzzle.needles)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_text_and_any_other_number_another(task: str) -> None:
    first = characters().puzzle(task, 0)
    assert first == characters().puzzle(task, 0)
    assert first.sha256 != characters().puzzle(task, 1).sha256
    assert first.sha256 != characters(seed=43).puzzle(task, 0).sha256


def test_texts_do_not_depend_on_the_process() -> None:
    code = (
        "from tools.ruler.tasks import TASKS, Fitter\n"
        "print([Fitter(42, 3000, False, len).puzzle(t, 0).sha256[:8] for t in TASKS])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True
    )
    assert told.stdout.strip() == str([characters().puzzle(t, 0).sha256[:8] for t in TASKS])


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("common", "frequent")])
def test_needles_and_their_depths_do_not_depend_on_the_length(task: str) -> None:
    short, long = (characters(room=room).puzzle(task, 3) for room in (5000, 50_000))
    assert (short.needles, short.questions) == (long.needles, long.questions)
    for needle in short.needles:
        here, there = (puzzle.source.index(needle) / len(puzzle.source) for puzzle in (short, long))
        assert here == pytest.approx(there, abs=0.25)


@pytest.mark.parametrize("completes", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_prompts_fill_the_room_and_no_more(task: str, completes: bool) -> None:
    room = 4321
    puzzle = characters(room=room, completes=completes).puzzle(task, 0)
    longest = max(len(puzzle.message(question, completes)) for question in puzzle.questions)
    assert room - 100 < longest <= room


def test_the_questions_of_a_text_share_all_of_it() -> None:
    puzzle = characters().puzzle("multiquery", 0)
    messages = [puzzle.message(question, False) for question in puzzle.questions]
    assert len(set(messages)) == 4
    assert all(message.startswith(puzzle.source) for message in messages)


def test_a_model_that_completes_text_is_given_the_beginning_of_the_answer() -> None:
    puzzle = characters().puzzle("single", 0)
    (question,) = puzzle.questions
    assert puzzle.message(question, True) == f"{puzzle.message(question, False)}\n\n{question.lead}"


def test_near_keys_differ_from_the_first_in_one_digit() -> None:
    for seed in range(20):
        key, *others = near_keys(Random(seed), NEAR)
        assert len({key, *others}) == NEAR
        for other in others:
            assert sum(a != b for a, b in zip(key, other, strict=True)) == 1


def test_filler_shares_no_word_with_the_names_of_needles() -> None:
    filler = set(" ".join(sentences(Random(1), 500)).replace(".", "").split())
    for seed in range(20):
        for key in near_keys(Random(seed), 2):
            assert not filler & set(key.split())


def test_longer_filler_only_adds_sentences() -> None:
    assert sentences(Random(1), 9)[:4] == sentences(Random(1), 4)


def test_a_context_without_room_is_refused_by_task() -> None:
    fitter = Fitter(42, 300, False, len)
    with pytest.raises(InputError, match=r"^task multikey: its shortest prompt has \d+ tokens, "):
        fitter.check("multikey")
    Fitter(42, 600, False, len).check("single")


def test_an_unknown_task_is_refused_by_name() -> None:
    assert chosen([]) == list(TASKS)
    assert chosen(["common", "single", "common"]) == ["common", "single"]
    with pytest.raises(
        InputError, match=r"--tasks niah: not a task\. Choose from: single, multikey"
    ):
        chosen(["single", "niah"])
