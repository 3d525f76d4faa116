"""Teams of make-believe: the very bodies of `engine.cpu.team`, over a dictionary of words, their
threads taking turns at every shared word as a seed chooses.

So a thread may stand still anywhere for as long as others go on: what a machine does once in a
million runs, and with more threads than it has cores.
"""

from __future__ import annotations

import ast
import inspect
import random
from collections import defaultdict
from collections.abc import Generator, Sequence
from textwrap import dedent
from typing import Any

from engine.cpu import team

Turns = Generator[None, None, Any]
"""What a thread does, given up at every point where another may come in between."""

_CONTROL, _ENTRIES, _BLOCKS = 1 << 20, 1 << 21, 1 << 22  # addresses
_ITEM, _AHEAD = 1, 2  # verbs
_MOST_TURNS = 50_000  # of a schedule: some thousand do
_BODIES = (
    "_announce", "_advance", "_work", "_take", "_look_ahead", "_serve", "_begin", "_complete",
    "_run", "_start", "_join", "_stop",
)  # fmt: skip
_SHARED = {
    "atomic_add", "atomic_load", "atomic_store", "call", "pause", "yield_core", "sleep_while",
    "wake_all",
}  # fmt: skip


class _TurnByTurn(ast.NodeTransformer):
    """Whoever is called gives up turns, too."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in (*_BODIES, *_SHARED):
            return ast.YieldFrom(value=node)
        return node


def _code() -> Any:
    """The bodies as generators."""
    found = ast.Module([], [])
    for name in _BODIES:
        source = inspect.getsource(inspect.unwrap(getattr(team, name)))
        body = _TurnByTurn().visit(ast.parse(dedent(source)).body[0])
        body.decorator_list = []
        found.body.append(body)
    return compile(ast.fix_missing_locations(found), team.__file__, "exec")


_CODE = _code()


class Schedule:
    """A team of `threads` that runs programs, given as their entries' numbers of items.

    `run` raises AssertionError with a law that does not hold: an item runs twice or out of its
    turn, two run in one slot, a program that has ended is looked at, or somebody waits for ever.
    """

    def __init__(self, threads: int, seed: int) -> None:
        self.threads, self._random = threads, random.Random(seed)
        self._words: defaultdict[int, int] = defaultdict(int)
        self._words[_CONTROL + team._THREADS] = threads
        self._asleep: dict[int, int] = {}
        self._slot = 0  # whose turn it is
        self._sizes: Sequence[int] = ()
        self._done: list[set[int]] = []
        self._busy: set[int] = set()
        self._names = self._world()

    def run(self, programs: Sequence[Sequence[int]]) -> None:
        """Run the programs, then end the team."""
        serve = self._names["_serve"]
        threads = dict(enumerate([self._caller(programs)]))
        threads |= {slot: serve(_CONTROL, slot) for slot in range(1, self.threads)}
        # most of the time one thread goes on, and another does not get a core for a while
        goes_on, stops = self._random.choice((0.0, 0.5, 0.9)), self._random.choice((0.0, 0.01, 0.1))
        stopped, until = 0, 0
        for turn in range(_MOST_TURNS):
            able = [slot for slot in threads if slot not in self._asleep]
            assert able or not threads, "all sleep for ever"
            if not threads:
                return
            if turn >= until and self._random.random() < stops:
                stopped, until = self._slot, turn + self._random.randrange(300)
            able = [slot for slot in able if slot != stopped or turn >= until] or able
            if self._slot not in able or self._random.random() >= goes_on:
                self._slot = self._random.choice(able)
            try:
                next(threads[self._slot])
            except StopIteration:
                del threads[self._slot]
        raise AssertionError(f"threads {sorted(threads)} wait for ever")

    def _caller(self, programs: Sequence[Sequence[int]]) -> Turns:
        for sizes in programs:
            self._sizes, self._done = sizes, [set() for _ in sizes]
            for i, items in enumerate(sizes):
                block = _BLOCKS + 8 * i
                self._words[block] = items
                for j, word in enumerate((_ITEM, block, _AHEAD)):
                    self._words[_ENTRIES + 8 * (team.WORDS * i + j)] = word
            if self._random.random() < 0.5:
                yield from self._names["_run"](_CONTROL, _ENTRIES, len(sizes))
            else:
                yield from self._names["_start"](_CONTROL, _ENTRIES, len(sizes))
                for _ in range(self._random.randrange(100)):
                    yield  # the caller does something else
                yield from self._names["_join"](_CONTROL)
            assert [len(done) for done in self._done] == list(sizes), "items were left out"
            self._sizes = ()
        yield from self._names["_stop"](_CONTROL)

    def _world(self) -> dict[str, Any]:
        """The module's names and ours in the place of what is shared."""
        names = vars(team) | {name: getattr(self, f"_{name}") for name in _SHARED}
        names |= {"_SPINS": 3, "_PATIENCE": 3, "_STEPS": 2}
        names["field"] = lambda address, i: self._words[address + 8 * i]
        names["prefetch_first"] = lambda address: None
        exec(_CODE, names)
        return names

    def _atomic_load(self, address: int) -> Turns:
        yield
        return self._words[address]

    def _atomic_store(self, address: int, value: int) -> Turns:
        yield
        self._words[address] = value

    def _atomic_add(self, address: int, value: int) -> Turns:
        yield
        self._words[address] += value
        return self._words[address] - value

    def _pause(self) -> Turns:
        yield

    _yield_core = _pause

    def _sleep_while(self, address: int, value: int) -> Turns:
        yield
        if self._words[address] == value:
            self._asleep[self._slot] = address
            yield

    def _wake_all(self, address: int) -> Turns:
        yield
        self._asleep = {slot: at for slot, at in self._asleep.items() if at != address}

    def _call(self, verb: int, arguments: tuple[int, int, int]) -> Turns:
        index = (arguments[0] - _BLOCKS) // 8
        assert index < len(self._sizes), "a program that has ended is looked at"
        yield
        if verb == _AHEAD:
            return
        _, item, slot = arguments
        done = [len(done) for done in self._done[:index]]
        assert done == list(self._sizes[:index]), "an entry began before the end of another"
        assert slot not in self._busy, "two items in one slot"
        assert item not in self._done[index] and 0 <= item < self._sizes[index], "an item too many"
        self._busy.add(slot)
        yield
        self._busy.discard(slot)
        self._done[index].add(item)
