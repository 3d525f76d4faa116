"""Whatever order a team's threads get on in, every item runs once and in turn, and all ends."""

from __future__ import annotations

import random

import pytest
from team_schedules import Schedule


@pytest.mark.parametrize("threads", [2, 3, 4, 8])
def test_no_order_of_threads_loses_an_item_or_waits_for_ever(threads: int) -> None:
    for seed in range(600):
        chosen = random.Random(seed)
        programs = [
            chosen.choices((0, 1, 2, 3, 4, 5, 7, 12), k=chosen.randrange(1, 7))
            for _ in range(chosen.randrange(1, 6))
        ]
        try:
            Schedule(threads, seed).run(programs)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, items {programs}: {error}") from error
