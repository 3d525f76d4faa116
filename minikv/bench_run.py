"""Benchmarks, reported result by result as the user watches."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.backends import new_ops
from engine.checkpoint import Checkpoint
from engine.config import available_cores
from engine.model.archs import spec_of
from engine.model.load import Model, open_checkpoint
from engine.ops import Ops
from minikv import installed_version
from minikv.kernels import announce_compilation
from minikv.progress import TerminalProgress
from minikv.run import note
from minikv.sources import resolve
from minikv.text import one_line
from tools.bench import Plan, Tell, measure
from tools.bench_report import Machine, Row, describe, report_type


def bench(
    names: Sequence[str],
    plan: Plan,
    threads: Sequence[int],
    pin: bool,
    backend: str,
    output: str,
) -> None:
    """Measure every model with every number of threads; results on stdout, progress on stderr.

    What cannot be measured is refused before the first test.
    """
    make_report = report_type(output)
    teams = {n: new_ops(backend, n, pin) for n in threads or [available_cores()]}
    checkpoints = [open_checkpoint(resolve(name, progress=TerminalProgress())) for name in names]
    for checkpoint in checkpoints:
        plan.check(spec_of(checkpoint).n_ctx_train)
    machine = Machine(f"minikv-{installed_version()}", _cpu(), backend.upper())
    report = make_report(plan, machine.build)
    progress = _Progress(len(plan) * len(checkpoints) * len(teams))
    if progress.live and backend == "cpu":
        announce_compilation(lambda: progress.say("compiling kernels for this CPU, once"))
    try:
        _print(report.header())
        for row in _rows(checkpoints, teams, machine, plan, progress.tell):
            progress.clear()
            _print(report.row(row))
            progress.done += 1
    finally:
        progress.clear()
        _print(report.footer())


def _rows(
    checkpoints: Sequence[Checkpoint],
    teams: dict[int, Ops],
    machine: Machine,
    plan: Plan,
    tell: Tell,
) -> Iterator[Row]:
    for checkpoint in checkpoints:
        description = describe(checkpoint)
        for threads, ops in teams.items():
            model = Model(checkpoint, ops)
            for result in measure(model, plan, tell):
                yield Row(machine, description, threads, result)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _Progress:
    """What is being measured: a line that changes on a terminal, elsewhere a line per test."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total
        self.live = sys.stderr.isatty()
        self._told = -1  # the last test that has its line

    def tell(self, test: str, doing: str) -> None:
        line = f"minikv: test {self.done + 1} of {self.total}: {one_line(test)}"
        if self.live:
            sys.stderr.write(f"\r{line}: {doing}\x1b[K")
            sys.stderr.flush()
        elif self._told < self.done:
            self._told = self.done
            print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        self.clear()
        note(line)

    def clear(self) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _cpu() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
