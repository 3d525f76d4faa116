"""What a team runs: verbs with their arguments, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int64
from struct import pack_into
from typing import Any

import numpy as np

from engine.cpu.jit import Verb, call, field
from engine.cpu.team import MOST_ITEMS, WORDS
from engine.memory import address, aligned_zeros

_CHUNK = 1 << 12  # words of argument blocks that lie together


def _item_of_any(arguments, item, slot):
    """Item: one of all entries', in their order.  Fields: verb and argument block of each."""
    entry = arguments + 8
    while item >= field(field(entry, 1), 0):
        item -= field(field(entry, 1), 0)
        entry += 16
    call(field(entry, 0), (field(entry, 1), item, slot))


_ITEM_OF_ANY = Verb(_item_of_any)


class Program:
    """Entries in the order in which they run."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._keep: list[Any] = []
        # blocks lie one behind another, on cache lines: they are read from memory once per token
        self._chunk: Any = np.empty(0, np.int64)
        self._start, self._used = 0, 0
        self._written: np.ndarray | None = None
        self._target = 0

    def __len__(self) -> int:
        return len(self._words) // WORDS

    def add(self, verb: Verb, items: int, *fields: int, ahead: Verb | None = None) -> int:
        """Append verb(arguments, item, slot) for items 0..items, arguments (items, *fields), whose
        address it returns.

        A thread that waits before it calls ahead(arguments, slot, step) for steps 0, 1, ... to ask
        for what it will read first in its items, which are `slot`, `slot` + threads, ...
        """
        arguments = self.block(items, *fields)
        self.append(verb, arguments, ahead)
        return arguments

    def block(self, items: int, *fields: int) -> int:
        """The address of the argument block int64 (items, *fields) of an entry to be appended:
        earlier entries may write to it."""
        if not 0 <= items <= MOST_ITEMS:
            raise ValueError(f"{items} items: an entry has at most {MOST_ITEMS}")
        size = 1 + len(fields)
        if self._used + size > len(self._chunk):
            chunk = aligned_zeros((max(_CHUNK, size),), np.int64)
            self._keep.append(chunk)
            place = address(chunk)
            # plain stores: Ctrl-C leaves all as it was, for who goes on with the program
            self._chunk, self._start, self._used = chunk, place, 0
        start = self._used
        self._used = start + -(-size // 8) * 8
        pack_into(f"{size}q", self._chunk, 8 * start, items, *fields)
        return self._start + 8 * start

    def append(self, verb: Verb, arguments: int, ahead: Verb | None = None) -> None:
        """Append an entry whose `block` is at `arguments`."""
        self._words += (verb.address, arguments, ahead.address if ahead else 0)
        self._written = None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Entries added in here become one, their items independent of each other: threads need not
        wait for the last item of each.  What one entry's items use must not be given to another."""
        start = len(self._words)
        yield
        entries = self._words[start:]
        if len(entries) <= WORDS:
            return
        del self._words[start:]
        verbs, blocks = entries[::WORDS], entries[1::WORDS]
        items = sum(c_int64.from_address(block).value for block in blocks)
        parts = [word for pair in zip(verbs, blocks, strict=True) for word in pair]
        self.add(_ITEM_OF_ANY, items, *parts)

    def writes(self, array: np.ndarray, target: int) -> None:
        """Note of the last entry what `target` tells."""
        self._written, self._target = array, target

    def hold(self, *owners: Any) -> None:
        """Let the objects whose memory the entries use live as long as the program."""
        self._keep.extend(owners)

    def target(self, array: np.ndarray) -> c_int64 | None:
        """The word of the last entry's arguments that says where it writes `array`, if `array` is
        all that it writes there: who changes the word between two runs puts the array elsewhere."""
        return c_int64.from_address(self._target) if self._written is array else None

    def table(self) -> np.ndarray:
        """The entries as int64 [entries, 3] of addresses."""
        return np.array(self._words, np.int64).reshape(-1, WORDS)
