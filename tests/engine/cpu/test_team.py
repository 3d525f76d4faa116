"""A team runs every item once, whoever takes it, and costs nothing while idle."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from engine.config import available_cores, cores_of_their_own
from engine.cpu import team
from engine.cpu.atomics import atomic_add, atomic_load, pause
from engine.cpu.jit import Verb, field
from engine.cpu.program import Program
from engine.cpu.simd import load_i64, store_i64
from engine.cpu.team import MOST_ITEMS, Team


def _count(arguments, item, slot):
    """Add 1 to the item's word, and to the slot's behind the items' words."""
    items, counts = field(arguments, 0), field(arguments, 1)
    atomic_add(counts + 8 * item, 1)
    atomic_add(counts + 8 * (items + slot), 1)


COUNT = Verb(_count)


def run_counts(team: Team, items: int, times: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(runs per item, runs per slot)."""
    counts = np.zeros(items + team.threads, np.int64)
    program = Program()
    program.add(COUNT, items, counts.ctypes.data)
    for _ in range(times):
        team.run(program.table())
    return counts[:items], counts[items:]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("items", [0, 1, 2, 7, 1000])
def test_every_item_runs_once_per_launch(threads: int, items: int) -> None:
    per_item, per_slot = run_counts(Team(threads), items, times=200)
    assert (per_item == 200).all()
    assert per_slot.sum() == 200 * items


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(3,), (3, 4), (1, 0, 5, 1)])
def test_entries_at_once_run_every_item_of_each(threads: int, sizes: tuple[int, ...]) -> None:
    counts = [np.zeros(items + threads, np.int64) for items in sizes]
    program, runner = Program(), Team(threads)
    with program.at_once():
        for items, found in zip(sizes, counts, strict=True):
            program.add(COUNT, items, found.ctypes.data)
    assert len(program) == 1
    for _ in range(50):
        runner.run(program.table())
    for items, found in zip(sizes, counts, strict=True):
        assert (found[:items] == 50).all()
        assert found[items:].sum() == 50 * items


@pytest.mark.parametrize(("threads", "sizes"), [(2, (4, 2)), (3, (3, 2)), (4, (8, 2))])
def test_short_entries_follow_one_another_without_end(threads: int, sizes: tuple[int, ...]) -> None:
    """Whoever is slow to count its items, or to write the tickets, meets the next entry."""
    runner, counts, program = Team(threads), np.zeros(max(sizes) + threads, np.int64), Program()
    entries, times = 1000, 1000
    for i in range(entries):
        program.add(COUNT, sizes[i % len(sizes)], counts.ctypes.data)
    table = program.table()

    def launches() -> None:
        for _ in range(times):
            runner.run(table)

    caller = threading.Thread(target=launches, daemon=True)
    caller.start()
    caller.join(120)
    assert not caller.is_alive(), "an item or the end of an entry was lost"
    # items are counted by item and by slot, whose words overlap here
    assert counts.sum() == 2 * times * entries // len(sizes) * sum(sizes)


def _wait(arguments, item, slot):
    """Say that the item has begun, and end once the word behind that is not 0."""
    atomic_add(field(arguments, 1), 1)
    while atomic_load(field(arguments, 1) + 8) == 0:
        pause()


WAIT = Verb(_wait)


def _square_next(arguments, item, slot):
    """Fields: source, target: the target's word is the square of the next word of the source."""
    items = field(arguments, 0)
    value = load_i64(field(arguments, 1) + 8 * ((item + 1) % items))
    store_i64(field(arguments, 2) + 8 * item, value * value % 1000003)


SQUARE = Verb(_square_next)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_entry_sees_all_that_the_entries_before_it_wrote(threads: int) -> None:
    team, program = Team(threads), Program()
    sizes = (64, 64, 1, 64, 7, 64)
    words = [np.arange(2, 66, dtype=np.int64) for _ in range(len(sizes) + 1)]
    want = words[0].copy()
    for source, target, items in zip(words, words[1:], sizes, strict=False):
        program.add(SQUARE, items, source.ctypes.data, target.ctypes.data)
        step = np.arange(2, 66, dtype=np.int64)
        step[:items] = np.roll(want[:items], -1) ** 2 % 1000003
        want = step
    for _ in range(300):
        for array in words[1:]:
            array[:] = np.arange(2, 66)
        team.run(program.table())
        np.testing.assert_array_equal(words[-1], want)


def _note(arguments, slot, step):
    """Add 1 to the slot's word of the second field's, again and again: it takes a while."""
    for _ in range(100):
        atomic_add(field(arguments, 2) + 8 * slot, 1)


NOTE = Verb(_note)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_nobody_looks_ahead_in_a_program_that_has_finished(threads: int) -> None:
    team, notes, later = Team(threads), [], []
    for _ in range(200):
        counts, steps = np.zeros(threads + 40, np.int64), np.zeros(threads, np.int64)
        program = Program()
        for items in (1, 40, 3, 40, 1, 1):
            program.add(COUNT, items, counts.ctypes.data, steps.ctypes.data, ahead=NOTE)
        team.run(program.table())
        assert counts.sum() == 2 * (1 + 40 + 3 + 40 + 1 + 1)
        notes.append(steps.copy())
        later.append(steps)
    time.sleep(0.05)
    np.testing.assert_array_equal(notes, later)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_started_program_ends_before_the_next_begins(threads: int) -> None:
    runner, program = Team(threads), Program()
    words = [np.arange(2, 66, dtype=np.int64) for _ in range(3)]
    for source, target in pairwise(words):
        program.add(SQUARE, 64, source.ctypes.data, target.ctypes.data)
    table = program.table()
    end = lambda: runner.start(table, program), runner.join, lambda: runner.run(table)
    for i in range(300):
        words[0] += 1
        once = np.roll(words[0], -1) ** 2 % 1000003
        runner.start(table, program)
        end[i % 3]()  # each of them waits for what was started
        if i % 3 == 0:
            runner.join()
        np.testing.assert_array_equal(words[2], np.roll(once, -1) ** 2 % 1000003)


@pytest.mark.parametrize("threads", [2, 4])
def test_the_caller_need_not_be_there_for_a_started_program(threads: int) -> None:
    runner, program, counts = Team(threads), Program(), np.zeros(40 + threads, np.int64)
    for items in (1, 40, 3, 1):
        program.add(COUNT, items, counts.ctypes.data)
    runner.start(program.table(), program)
    deadline = time.monotonic() + 30
    while counts.sum() < 2 * 45 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert counts.sum() == 2 * 45
    runner.join()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_team_that_is_dropped_ends_what_it_started_first(threads: int) -> None:
    runner, program, state = Team(threads), Program(), np.zeros(2, np.int64)
    program.add(WAIT, threads, state.ctypes.data)
    state[1] = threads == 1  # alone, nothing runs before it is joined
    runner.start(program.table(), program)
    other = threading.Timer(0.05, state.__setitem__, (1, 1))
    other.start()
    del runner, program
    gc.collect()
    assert state[1] == 1
    other.join()


def test_threads_asleep_wake_up_for_work() -> None:
    team = Team(2)
    for _ in range(20):
        time.sleep(0.01)
        per_item, _ = run_counts(team, 50)
        assert (per_item == 1).all()


def test_more_items_than_a_ticket_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        Program().add(COUNT, MOST_ITEMS + 1, 0)


def test_callers_on_several_threads_take_turns() -> None:
    team, results = Team(2), []

    def caller() -> None:
        results.append(run_counts(team, 37, times=100)[0])

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert len(results) == 4 and all((counts == 100).all() for counts in results)


def test_an_idle_team_burns_no_processor_time() -> None:
    team = Team(2)
    run_counts(team, 10)
    time.sleep(0.1)
    start = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - start < 0.1


def test_threads_end_with_their_team() -> None:
    before = set(threading.enumerate())
    team = Team(4)
    run_counts(team, 10)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    del team
    gc.collect()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)


def test_threads_end_when_the_system_refuses_their_team_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, start = [], threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    with pytest.raises(RuntimeError):
        Team(4)
    gc.collect()
    for thread in begun:
        thread.join(30)
    assert not any(thread.is_alive() for thread in begun)


def test_what_all_threads_run_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = [0], [0]

    class Serve:
        @property
        def function(self) -> Callable[..., None]:  # takes a second where it is not cached
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            time.sleep(0.01)
            at_once[0] -= 1
            return found

    found = team._SERVE.function
    monkeypatch.setattr(team, "_SERVE", Serve())
    before = set(threading.enumerate())
    own = Team(6)
    threads = set(threading.enumerate()) - before
    del own
    gc.collect()
    for thread in threads:
        thread.join(30)
    assert most == [1]


def works_in_a_forked_child(team: Team) -> bool:
    child = os.fork()
    if child == 0:
        single, _ = run_counts(team, 1)  # is not dealt out
        per_item, per_slot = run_counts(team, 100)
        os._exit(0 if single == 1 and (per_item == 1).all() and per_slot[0] == 100 else 1)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if done[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return done == (child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_does_the_work_alone() -> None:
    team = Team(3)
    run_counts(team, 10)
    assert works_in_a_forked_child(team)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("items", [2, 3])
def test_a_child_forked_while_the_team_works_for_another_thread_leaves_it_that_work(
    items: int,
) -> None:
    team, state, program = Team(2), np.zeros(2, np.int64), Program()
    program.add(WAIT, items, state.ctypes.data)
    table = program.table()
    other = threading.Thread(target=team.run, args=(table,))
    other.start()
    while state[0] < 2:
        time.sleep(0.001)
    try:
        assert works_in_a_forked_child(team)
    finally:
        state[1] = 1
        other.join()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound")
def test_pinned_threads_keep_to_their_cores_and_the_caller_only_while_it_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, cores = os.sched_getaffinity(0), cores_of_their_own(available_cores())
    others = set(threading.enumerate())
    pinned = Team(len(cores), cores)
    workers = [one.native_id for one in threading.enumerate() if one not in others]
    run, seen = team._RUN.function, []

    def watched(*arguments: int) -> None:
        seen.append(os.sched_getaffinity(0))
        run(*arguments)

    monkeypatch.setattr(team._RUN, "function", watched)
    assert run_counts(pinned, 100)[0].sum() == 100
    assert seen == [{cores[0]}]
    assert os.sched_getaffinity(0) == before
    deadline = time.monotonic() + 30  # until every worker has begun
    bound = [os.sched_getaffinity(i or 0) for i in workers]
    while any(len(one) > 1 for one in bound) and time.monotonic() < deadline:
        time.sleep(0.01)
        bound = [os.sched_getaffinity(i or 0) for i in workers]
    assert sorted(bound, key=min) == [{core} for core in cores[1:]]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound")
def test_an_interruption_does_not_leave_the_caller_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    before, bind = os.sched_getaffinity(0), os.sched_setaffinity

    def interrupted(thread: int, cores: Sequence[int]) -> None:
        bind(thread, cores)
        if tuple(cores) == (min(before),):
            raise KeyboardInterrupt

    pinned = Team(1, (min(before),))
    monkeypatch.setattr(os, "sched_setaffinity", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_counts(pinned, 1)
    assert os.sched_getaffinity(0) == before
