"""A team of threads that runs programs: one call from Python for a whole forward pass.

A program is a list of entries (verb, argument block); word 0 of the block is the entry's number of
items, and the verb runs once per item.  Entries run one after another, the items of one at once,
dealt out in turn: whoever has done its own takes those of others, so on a busy machine a thread
that does not get its core delays the others by the item it holds, no more, and in a forked child,
which has no other threads, the caller does all of it.  Who finishes an entry's last item starts the
next entry, and runs entries of a single item itself.  Items are independent, so results do not
depend on who ran them.  A thread that waits asks memory for what it will read first in its part of
an entry to come; idle threads spin for a moment, then sleep.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from engine.cpu.atomics import (
    atomic_add,
    atomic_load,
    atomic_store,
    pause,
    sleep_while,
    wake_all,
    yield_core,
)
from engine.cpu.jit import Verb, call, field, kernel
from engine.cpu.simd import prefetch_first
from engine.memory import LINE, aligned_zeros

# The control block: one cache line of eight words per field that different threads write, and
# behind them a ticket per thread.  Item i is on ticket i % threads, which says how many items that
# is and, in the low bits, the next of them: one addition settles a claim.  Who comes too late
# counts on; the room between MOST_ITEMS and the mask is for that.  Its own ticket is a thread's
# alone until others have nothing left to do, so it always works on the same part of an entry, and
# knows in advance on which.  Items are counted as done once per entry and thread.
_DONE, _LAUNCHES, _SLEEPERS, _STOP, _FINISHED, _LOOKING = 0, 64, 128, 192, 256, 320
_VERB, _ARGUMENTS, _ITEMS, _PROGRAM, _ENTRIES, _INDEX, _THREADS = range(384, 440, 8)
_TICKETS = 448
_BITS = 24
_MASK = (1 << _BITS) - 1
MOST_ITEMS = (1 << 16) - 1
WORDS = 3  # of an entry in a table
_STEPS = 128  # of looking ahead, a KB each
_SPINS = 6000  # pauses before sleep: about 0.3 ms, longer than sampling a token takes
_PATIENCE = 200  # pauses before the caller, waiting for the last items, offers its core


@kernel
def _announce(control):
    atomic_add(control + _LAUNCHES, 1)
    if atomic_load(control + _SLEEPERS) > 0:
        wake_all(control + _LAUNCHES)


@kernel
def _advance(control, slot):
    """Start the next entry, when no item of the last is left: the calling thread runs entries of a
    single item, and publishes the first with more."""
    index, entries = atomic_load(control + _INDEX), atomic_load(control + _ENTRIES)
    program = atomic_load(control + _PROGRAM)
    while index < entries:
        entry = program + 8 * WORDS * index
        verb, arguments = field(entry, 0), field(entry, 1)
        items = field(arguments, 0)
        index += 1
        if index < entries:
            following = field(entry, WORDS + 1)
            prefetch_first(following)
            prefetch_first(following + 64)
        if items == 1:
            call(verb, (arguments, 0, slot))
        elif items > 1:
            atomic_store(control + _INDEX, index)
            atomic_store(control + _VERB, verb)
            atomic_store(control + _ARGUMENTS, arguments)
            atomic_store(control + _ITEMS, items)
            atomic_store(control + _DONE, 0)
            threads = field(control, _THREADS // 8)
            # the first has an item always, and with it the entry cannot end before it stands here:
            # a ticket written later could be the next entry's
            for thread in range(threads - 1, -1, -1):
                own = (items - thread + threads - 1) // threads
                atomic_store(control + _TICKETS + 64 * thread, own << _BITS)
            _announce(control)
            return
    atomic_store(control + _FINISHED, 1)


@kernel
def _work(control, slot):
    """Run items until none is left to take, the thread's own first."""
    threads = field(control, _THREADS // 8)
    while True:
        done = 0
        for thread in range(slot, slot + threads):
            done += _take(control, thread - (threads if thread >= threads else 0), slot)
        if done == 0:
            return
        # with items of its own not yet counted, the entry is still the one they were taken from:
        # as soon as they are, others may have ended it and started the next
        items = atomic_load(control + _ITEMS)
        if atomic_add(control + _DONE, done) + done == items:
            _advance(control, slot)


@kernel
def _take(control, whose, slot):
    """Run items of one ticket while there are any; how many."""
    address, done = control + _TICKETS + 64 * whose, 0
    while True:
        ticket = atomic_load(address)
        if ticket & _MASK >= ticket >> _BITS:
            return done
        ticket = atomic_add(address, 1)
        if ticket & _MASK >= ticket >> _BITS:
            return done
        # the entry cannot end before its item: these words are its own
        verb, arguments = atomic_load(control + _VERB), atomic_load(control + _ARGUMENTS)
        item = whose + (ticket & _MASK) * field(control, _THREADS // 8)
        call(verb, (arguments, item, slot))
        done += 1


@kernel
def _look_ahead(control, slot, launches):
    """Ask for what the thread will read first in the next entry that can tell, until another entry
    is started."""
    index, entries = atomic_load(control + _INDEX), atomic_load(control + _ENTRIES)
    entry = atomic_load(control + _PROGRAM) + 8 * WORDS * index
    while index < entries and field(entry, 2) == 0:
        index += 1
        entry += 8 * WORDS
    if index < entries:
        step = 0
        while step < _STEPS and atomic_load(control + _LAUNCHES) == launches:
            call(field(entry, 2), (field(entry, 1), slot, step))
            step += 1


def _serve(control, slot):
    """A thread's life: work, look ahead, spin, sleep."""
    while True:
        launches = atomic_load(control + _LAUNCHES)
        # not before: who stops the team announces it once
        if atomic_load(control + _STOP) != 0:
            return
        _work(control, slot)
        if atomic_load(control + _FINISHED) == 0:
            # the caller waits for those it sees looking, and they see when it has stopped waiting
            atomic_add(control + _LOOKING, 1)
            if atomic_load(control + _FINISHED) == 0:
                _look_ahead(control, slot, launches)
            atomic_add(control + _LOOKING, -1)
        spins = 0
        while atomic_load(control + _LAUNCHES) == launches:
            pause()
            spins += 1
            if spins > _SPINS:
                atomic_add(control + _SLEEPERS, 1)
                sleep_while(control + _LAUNCHES, launches)
                atomic_add(control + _SLEEPERS, -1)


@kernel
def _begin(control, program, entries):
    """Let the other threads run a program."""
    atomic_store(control + _PROGRAM, program)
    atomic_store(control + _ENTRIES, entries)
    atomic_store(control + _INDEX, 0)
    atomic_store(control + _FINISHED, 0)
    _advance(control, 0)


@kernel
def _complete(control):
    """Help, and return when the program has finished and nobody looks at it any more."""
    spins, looked = 0, -1
    while True:
        launches = atomic_load(control + _LAUNCHES)
        _work(control, 0)
        if atomic_load(control + _FINISHED) != 0 and atomic_load(control + _LOOKING) == 0:
            return
        if launches != looked and atomic_load(control + _FINISHED) == 0:
            _look_ahead(control, 0, launches)
            looked = launches
        pause()
        spins += 1
        if spins > _PATIENCE:
            yield_core()


def _run(control, program, entries):
    _begin(control, program, entries)
    _complete(control)


def _start(control, program, entries):
    _begin(control, program, entries)


def _join(control):
    _complete(control)


def _stop(control):
    atomic_store(control + _STOP, 1)
    _announce(control)


_SERVE, _RUN, _STOP_THREADS = Verb(_serve), Verb(_run), Verb(_stop)
_START, _JOIN = Verb(_start), Verb(_join)


class Team:
    """`threads` threads, the caller among them.  They end with the team or the process.

    `cores` has one for each of them, which they do not leave while they work; empty lets them move.
    """

    def __init__(self, threads: int, cores: tuple[int, ...] = ()) -> None:
        self.threads, self._cores = threads, cores
        raw = aligned_zeros((_TICKETS + LINE * threads,))
        self._control = raw.ctypes.data
        self._memory = raw  # the control block's owner, also where no thread holds it
        self._started: list[Any] = []  # what the program that was started lives in
        self.alone()
        if threads > 1:
            # first, for those that have begun when the system refuses another
            weakref.finalize(self, _stop_threads, raw, self._control, self._started)
        for slot in range(1, threads):
            # the memory travels with the thread: it must outlive the last look at it
            arguments = (raw, self._control, slot, cores)
            threading.Thread(target=_run_thread, args=arguments, daemon=True).start()
        _TEAMS.add(self)

    def run(self, table: np.ndarray) -> None:
        """Run a program's table.

        An item's `slot` is below `threads` and no two items run in one slot at a time: it names a
        thread's share of scratch memory.  Safe to call from any thread; calls wait for each other.
        """
        self.run_at(table.ctypes.data, len(table))

    def run_at(self, table: int, entries: int) -> None:
        """The same for the table of so many entries at the address `table`."""
        with self._lock:
            self._join()
            self._call(_RUN, table, entries)

    def start(self, table: np.ndarray, owner: Any) -> None:
        """Let the other threads begin with a program's table, which `owner` keeps, while the caller
        does something else; programs that were started or run before end first."""
        address, entries = table.ctypes.data, len(table)
        with self._lock:
            if self._started:
                self._call(_JOIN)
            # until the end: to let go of what the last one lived in takes a while
            _last = self._started.copy()
            self._started[:] = table, owner
            self._call(_START, address, entries)

    def join(self) -> None:
        """Help with the program that was started last, and return when it has finished."""
        with self._lock:
            self._join()

    def _join(self) -> None:
        if self._started:
            self._call(_JOIN)
            self._started.clear()

    def _call(self, verb: Verb, *arguments: int) -> None:
        """On the caller's core."""
        if self._cores:
            with _bound_to(self._cores[:1]):
                verb.function(self._control, *arguments)
        else:
            verb.function(self._control, *arguments)

    def alone(self) -> None:
        """Forget the other threads, of which a forked child has none: what they held or did at that
        moment would be waited for, and what they had not begun would be taken up."""
        self._lock = threading.Lock()
        self._started.clear()
        words = self._memory.view(np.int64)
        words[:] = 0
        words[_THREADS // 8] = self.threads
        words[_FINISHED // 8] = 1


_TEAMS: weakref.WeakSet[Team] = weakref.WeakSet()
_BEGINNING = threading.Lock()


def _all_alone() -> None:
    for team in _TEAMS:
        team.alone()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_all_alone)


def _run_thread(memory: np.ndarray, control: int, slot: int, cores: tuple[int, ...]) -> None:
    with _BEGINNING:  # or each of them would compile it
        serve = _SERVE.function
    with _bound_to(cores[slot : slot + 1]):
        serve(control, slot)


@contextmanager
def _bound_to(cores: tuple[int, ...]) -> Iterator[None]:
    """Keep the calling thread on `cores`, if there are any; new threads would inherit them."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)  # and perhaps Ctrl-C
        yield
    finally:
        os.sched_setaffinity(0, before)


def _stop_threads(memory: np.ndarray, control: int, started: list[Any]) -> None:
    if started:
        _JOIN.function(control)
    _STOP_THREADS.function(control)
