"""A cluster measures what this process would, whatever becomes of its workers."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from letters import TEXT, letters_model

from engine import InputError
from tools import sweep_dask
from tools.results import Cell, Pair, Results
from tools.sweep import Grid, Sweep
from tools.sweep_dask import Cluster
from tools.windows import Settings

distributed = pytest.importorskip("distributed")
GRID = Grid(("q8_0", "q4_0"), ("f16", "q4_0", "q8_0"), metrics=("ppl", "kld"))
ORDER = GRID.pairs(seed=1)


@dataclass(frozen=True)
class Plan:
    """Notes every cell that is begun in `folder`.  The first process that begins `fatal` dies."""

    folder: Path
    fatal: Pair | None = None

    def sweep(self) -> Sweep:
        model = letters_model(backend="reference")
        return Watched(model, TEXT, Settings("llama", 64, 2), GRID, self)

    def begun(self) -> list[str]:
        return [note.name.split()[0] for note in self.folder.iterdir()]


class Watched(Sweep):
    def __init__(self, *args: Any) -> None:
        *args, self._plan = args
        super().__init__(*args)

    def measure(self, pair: Pair) -> Cell:
        name = "_".join(pair)
        again = name in self._plan.begun()
        (self._plan.folder / f"{name} {os.getpid()}").touch()
        if pair == self._plan.fatal and not again:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().measure(pair)


def local_cluster(n_workers: int, **options: Any) -> Any:
    return distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", **options
    )


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    with local_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "grid.sqlite", {"base": ["f16", "f16"]})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "begun").mkdir()
    return Plan(tmp_path / "begun")


def address(cluster: Any) -> str:
    return cluster.scheduler_address.replace("tcp://", "dask://")


def test_a_killed_worker_costs_no_cell_and_none_is_kept_twice(
    workers: Any, plan: Plan, results: Results
) -> None:
    plan = replace(plan, fatal=ORDER[2])
    here = replace(plan, fatal=None).sweep()
    with Cluster(address(workers)) as cluster:
        told = [pair for pair, _ in cluster.run(plan, here.identity(), results, ORDER)]
    assert sorted(told) == sorted(ORDER) and results.done() == set(ORDER)
    dead, alive = (note.name for note in plan.folder.glob(f"{'_'.join(ORDER[2])} *"))
    assert dead != alive  # begun by two processes
    for cell in results.cells():
        expected = Sweep.measure(here, cell.pair)
        np.testing.assert_array_equal(cell.nll, expected.nll)
        assert cell.values["mean_kld"] == expected.values["mean_kld"]
        assert cell.values["worker"].startswith("tcp://")


def test_finished_cells_stay_when_the_run_ends_and_only_the_others_are_measured_then(
    workers: Any, plan: Plan, results: Results
) -> None:
    here = plan.sweep()
    for pair in ORDER[:4]:
        results.put(Sweep.measure(here, pair))
    with Cluster(address(workers)) as cluster:
        pending = here.pending(results, seed=1)
        next(iter(cluster.run(plan, here.identity(), results, pending)))
    assert len(results.done()) == 5  # the one result that came is on disk
    with Cluster(address(workers)) as cluster:
        pending = here.pending(results, seed=1)
        assert dict(cluster.run(plan, here.identity(), results, pending)).keys() == set(pending)
    assert results.done() == set(ORDER)
    assert not {"_".join(pair) for pair in ORDER[:4]} & set(plan.begun())


def test_a_worker_that_would_measure_something_else_is_refused_by_name(
    workers: Any, plan: Plan, results: Results
) -> None:
    identity = plan.sweep().identity() | {"model_sha256": "ab" * 32}
    with (
        Cluster(address(workers)) as cluster,
        pytest.raises(InputError, match=r"worker tcp://\S+: its model_sha256 is [0-9a-f]+, not ab"),
    ):
        list(cluster.run(plan, identity, results, ORDER))
    assert results.done() == set() and results.errors() == {}


def test_a_cluster_that_disappears_ends_the_run_and_keeps_what_is_finished(
    plan: Plan, results: Results
) -> None:
    with local_cluster(1) as local, Cluster(address(local)) as cluster:
        outcomes = cluster.run(plan, plan.sweep().identity(), results, ORDER)
        first, _ = next(outcomes)
        local.close()
        with pytest.raises(InputError, match=r"dask://\S+: the scheduler is gone"):
            list(outcomes)
    assert first in results.done()


def test_a_run_without_workers_does_not_wait_for_ever(
    plan: Plan, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_dask, "_PATIENCE", 1.0)
    monkeypatch.setattr(sweep_dask, "_POLL", 0.1)
    monkeypatch.setattr(sweep_dask, "_ALONE", 0.1)
    with local_cluster(0, processes=False, protocol="tcp") as local:
        advice = r"no worker; start one with: dask worker 127\.0\.0\.1:\d+ --nthreads 1"
        with pytest.raises(InputError, match=advice):
            Cluster(address(local))
        local.scale(1)
        with Cluster(address(local)) as cluster:
            local.scale(0)
            with pytest.raises(InputError, match=advice):
                list(cluster.run(plan, {}, results, ORDER))


def test_an_address_where_no_scheduler_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_dask, "_PATIENCE", 0.3)
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        there = f"dask://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"{there}: no Dask scheduler answers"):
            Cluster(there)


@pytest.mark.parametrize(
    "wrong", ["", "dask", "ray://h:1", "dask://h", "dask://:1", "dask://h:99999", "dask://h:1/x"]
)
def test_what_is_no_executor_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match=f"--executor {wrong}: choose local or dask://HOST:PORT"):
        Cluster(wrong)
