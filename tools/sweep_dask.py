"""A sweep on a Dask cluster: cells are tasks, and this process keeps each result as it comes.

Every worker process builds the sweep once, from a plan, and measures one cell at a time.  A cell
whose worker dies is given to another one.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Protocol
from urllib.parse import urlsplit

from engine.errors import InputError
from tools.extras import extra
from tools.results import Cell, Outcome, Pair, Results
from tools.sweep import Sweep, told

SCHEME = "dask"
_PATIENCE = 10.0  # seconds to wait for a scheduler, and then for its first worker
_POLL = 2.0  # seconds between two looks at who is there
_ALONE = 60.0  # seconds that a run under way waits for a worker when all are gone


class Plan(Protocol):
    """How to build a sweep anywhere.  It is pickled: workers need the modules it comes from."""

    def sweep(self) -> Sweep: ...


class Cluster:
    """The cluster whose scheduler listens at `address`, dask://HOST:PORT.  To be closed.

    Raises InputError for an address that is none, or one where nobody answers.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        where = _where(address)
        self._distributed = extra("distributed")
        for name in ("distributed", "distributed.client"):  # what matters is told in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._client = self._distributed.Client(where, timeout=_PATIENCE)
        except OSError:
            raise InputError(
                f"{address}: no Dask scheduler answers within {_PATIENCE:g} seconds"
            ) from None
        try:
            self._client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            self.close()
            raise self._no_worker() from None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, which drops the cells that no worker has begun."""
        self._client.close(timeout=2)

    def run(
        self, plan: Plan, identity: Mapping[str, Any], results: Results, pending: Sequence[Pair]
    ) -> Iterator[tuple[Pair, Outcome]]:
        """Measure the cells into `results`; yields what comes of each, in the order they finish.

        `identity` is that of the plan's sweep here.  Raises InputError when a worker cannot build
        that very sweep, and when scheduler or workers are gone for good.
        """
        self._check()
        submit = self._client.submit
        # as a task of its own the plan travels once per worker, again if one dies
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")  # a long text
            shared = submit(_same, plan, pure=False)
        todo = {submit(_measured, shared, dict(identity), p, pure=False): p for p in pending}
        while todo:
            for future in self._finished(list(todo)):
                pair = todo.pop(future)
                error = future.exception()
                if isinstance(error, InputError):
                    raise error
                outcome = future.result() if error is None else told(error)
                results.keep(pair, outcome)
                yield pair, outcome

    def _finished(self, futures: list[Any]) -> list[Any]:
        """At least one of `futures`, all that are finished."""
        alone_since = None
        while True:
            self._check()
            try:
                return list(
                    self._distributed.wait(
                        futures, timeout=_POLL, return_when="FIRST_COMPLETED"
                    ).done
                )
            except CancelledError:
                raise self._gone() from None
            except TimeoutError:
                if self._client.scheduler_info().get("workers"):
                    alone_since = None
                elif alone_since is None:
                    alone_since = time.monotonic()
                elif time.monotonic() - alone_since > _ALONE:
                    running = self._client.status == "running"
                    raise (self._no_worker() if running else self._gone()) from None

    def _check(self) -> None:
        """A client that has waited for its scheduler in vain closes itself."""
        if self._client.status not in ("running", "connecting"):
            raise self._gone()

    def _gone(self) -> InputError:
        return InputError(f"{self.address}: the scheduler is gone; finished cells are kept")

    def _no_worker(self) -> InputError:
        where = self.address.removeprefix(f"{SCHEME}://")
        return InputError(
            f"{self.address}: no worker; start one with: dask worker {where} --nthreads 1"
        )


def _where(address: str) -> str:
    """The scheduler's address as Dask writes it."""
    try:
        parts = urlsplit(address)
        good = parts.scheme == SCHEME and parts.hostname and parts.port and not parts.path
    except ValueError:
        good = False
    if not good:
        raise InputError(f"--executor {address}: choose local or {SCHEME}://HOST:PORT")
    return f"tcp://{address.removeprefix(f'{SCHEME}://')}"


# What follows runs in workers.

_lock = threading.Lock()  # a worker with several threads still measures one cell at a time
_built: dict[str, Any] = {}  # the plan built last, and its sweep


def _same(plan: Plan) -> Plan:
    return plan


def _measured(plan: Plan, identity: dict[str, Any], pair: Pair) -> Outcome:
    with _lock:
        outcome = _sweep(plan, identity).outcome(pair)
    if isinstance(outcome, Cell):
        outcome.values["worker"] = extra("distributed").get_worker().address
    return outcome


def _sweep(plan: Plan, identity: dict[str, Any]) -> Sweep:
    """The sweep of `plan`, built once.  Raises InputError if it is another than expected."""
    if _built.get("plan") != plan:
        _built.clear()  # first: two models may not fit
        here = extra("distributed").get_worker().address
        try:
            sweep = plan.sweep()
        except InputError as error:
            raise InputError(f"worker {here}: {error}") from None
        found = sweep.identity()
        for name, value in identity.items():
            if found.get(name) != value:
                raise InputError(
                    f"worker {here}: its {name} is {found.get(name)!s:.40}, not {value!s:.40}"
                )
        _built.update(plan=plan, sweep=sweep)
    return _built["sweep"]
