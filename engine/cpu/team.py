"""A team of threads that runs the items of a kernel, handed out one by one.

The caller works too, and whoever is free takes the next item: on a busy machine a thread that does
not get its core delays the others by the item it holds, no more, and in a forked child, which has
no other threads, the caller does all of it.  Items are independent, so results do not depend on who
ran them.  Idle threads spin for some microseconds, then sleep.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np

from engine.cpu.atomics import (
    atomic_add,
    atomic_load,
    atomic_store,
    atomic_swap_if,
    pause,
    sleep_while,
    wake_all,
    yield_core,
)
from engine.cpu.jit import Verb, call, kernel

# The control block: one cache line of eight words per field that different threads write.
# The ticket holds everything a claim depends on, so that one compare-and-swap settles it:
# launch number, then 20 bits of items, then 20 bits of the next item.
_TICKET, _VERB, _ARGUMENTS, _DONE, _LAUNCHES, _SLEEPERS, _STOP = 0, 64, 72, 128, 192, 256, 320
_BITS = 20
MOST_ITEMS = (1 << _BITS) - 1
_SPINS = 2000  # pauses before sleep: about 0.1 ms, longer than the gap between two ops
_PATIENCE = 200  # pauses before the caller, waiting for the last items, offers its core


@kernel
def _work(control, slot):
    """Run items until none is left to take."""
    while True:
        ticket = atomic_load(control + _TICKET)
        item = ticket & MOST_ITEMS
        if item >= (ticket >> _BITS) & MOST_ITEMS:
            return
        # If the swap succeeds, this launch is unfinished and these words are its own.
        verb = atomic_load(control + _VERB)
        arguments = atomic_load(control + _ARGUMENTS)
        if atomic_swap_if(control + _TICKET, ticket, ticket + 1):
            call(verb, (arguments, item, slot))
            atomic_add(control + _DONE, 1)


@kernel
def _serve(control, slot):
    """A thread's life: work, spin, sleep."""
    while atomic_load(control + _STOP) == 0:
        launches = atomic_load(control + _LAUNCHES)
        _work(control, slot)
        spins = 0
        while atomic_load(control + _LAUNCHES) == launches:
            pause()
            spins += 1
            if spins > _SPINS:
                atomic_add(control + _SLEEPERS, 1)
                sleep_while(control + _LAUNCHES, launches)
                atomic_add(control + _SLEEPERS, -1)


@kernel
def _announce(control):
    atomic_add(control + _LAUNCHES, 1)
    if atomic_load(control + _SLEEPERS) > 0:
        wake_all(control + _LAUNCHES)


@kernel
def _launch(control, verb, arguments, items):
    """Run verb(arguments, item, slot) for every item and return when all are done."""
    atomic_store(control + _VERB, verb)
    atomic_store(control + _ARGUMENTS, arguments)
    atomic_store(control + _DONE, 0)
    launch = (atomic_load(control + _TICKET) >> (2 * _BITS)) + 1
    atomic_store(control + _TICKET, (launch << (2 * _BITS)) | (items << _BITS))
    _announce(control)
    _work(control, 0)
    spins = 0
    while atomic_load(control + _DONE) < items:
        pause()
        spins += 1
        if spins > _PATIENCE:
            yield_core()


@kernel
def _stop(control):
    atomic_store(control + _STOP, 1)
    _announce(control)


class Team:
    """`threads` threads, the caller among them.  They end with the team or the process."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        raw = np.zeros(64, np.int64)
        self._control = raw.ctypes.data + (-raw.ctypes.data % 64)
        self._memory = raw  # the control block's owner, also where no thread holds it
        self._lock = threading.Lock()
        for slot in range(1, threads):
            # the memory travels with the thread: it must outlive the last look at it
            arguments = (raw, self._control, slot)
            threading.Thread(target=_run_thread, args=arguments, daemon=True).start()
        if threads > 1:
            weakref.finalize(self, _stop_threads, raw, self._control)

    def run(self, verb: Verb, arguments: int, items: int) -> None:
        """Call verb(arguments, item, slot) for items 0..items; `arguments` is an address.

        `slot` is below `threads` and no two items run in one slot at a time: it names a thread's
        share of scratch memory.  Safe to call from any thread; calls wait for each other.
        """
        if not 0 <= items <= MOST_ITEMS:
            raise ValueError(f"{items} items: a team runs at most {MOST_ITEMS} at once")
        address = verb.address
        with self._lock:
            _launch(self._control, address, arguments, items)


def _run_thread(memory: np.ndarray, control: int, slot: int) -> None:
    _serve(control, slot)


def _stop_threads(memory: np.ndarray, control: int) -> None:
    _stop(control)
