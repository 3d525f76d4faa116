"""A sweep measures every pair as the single tools do, once, whatever stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from letters import TEXT, letters_model

from engine import InputError, Session
from engine.kv.formats import KV_FORMATS
from engine.model.load import Model
from tools.kld import Divergence
from tools.kld_report import Statistics
from tools.ppl import Perplexity
from tools.results import Results
from tools.sweep import Grid, Sweep
from tools.windows import Settings

SETTINGS = Settings("llama", 64, 2)
SMALL = Grid(("q8_0", "q4_0"), ("f16", "q4_0"), metrics=("ppl",))


@pytest.fixture(scope="module")
def model() -> Model:
    return letters_model()


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "grid.sqlite", {"base": ["f16", "f16"]})


@pytest.mark.parametrize("protocol", ["llama", "pa", "decode"])
def test_a_cell_is_what_minikv_kld_measures_bit_for_bit(model: Model, protocol: str) -> None:
    settings = Settings(protocol, 64, 2)
    sweep = Sweep(model, TEXT, settings, Grid(("q4_0",), ("q8_0",), metrics=("kld",)))
    cell = sweep.measure(("q4_0", "q8_0"))
    *_, tokens = Divergence(model, TEXT, Settings(protocol, 64, 2, "q4_0", "q8_0"))
    assert (cell.nll == tokens.nll).all()
    expected = Statistics(tokens).values()
    assert {name: cell.values[name] for name in expected} == expected


def test_a_cell_without_kld_is_what_minikv_ppl_measures(model: Model) -> None:
    cell = Sweep(model, TEXT, SETTINGS, SMALL).measure(("q8_0", "q4_0"))
    *_, score = Perplexity(model, TEXT, Settings("llama", 64, 2, "q8_0", "q4_0"))
    assert (cell.values["ppl"], cell.values["ppl_stderr"]) == (score.ppl, score.ppl_stderr)
    assert "mean_kld" not in cell.values


def test_the_reference_does_not_diverge_from_itself(model: Model) -> None:
    grid = Grid(("q4_0",), ("q4_0",), ("q4_0", "int3nsep"), ("kld",))
    values = Sweep(model, TEXT, SETTINGS, grid).measure(grid.base).values
    assert (values["max_kld"], values["delta_ppl"], values["same_top"]) == (0, 0, 1)


def test_a_broken_quantizer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = letters_model(backend="reference")  # whose pages are the format's own
    grid = Grid(("int3nsep",), ("f16",), metrics=("kld",))
    settings = Settings("pa", 64, 2)
    sound = Sweep(model, TEXT, settings, grid).measure(("int3nsep", "f16"))
    kind = type(KV_FORMATS["int3nsep"])
    encode = kind.encode

    def swapped(self, x, side, weights=None):
        page = encode(self, x, side, weights)
        page[..., [0, 1]] = page[..., [1, 0]]
        return page

    monkeypatch.setattr(kind, "encode", swapped)
    broken = Sweep(model, TEXT, settings, grid).measure(("int3nsep", "f16"))
    assert broken.values["ppl"] != sound.values["ppl"]
    assert abs(broken.values["mean_kld"] - sound.values["mean_kld"]) > 0


def test_bytes_are_those_of_a_session_with_the_pair(model: Model) -> None:
    pairs = [("f16", "q8_0"), ("int3nsep", "q4_0"), ("q8_0", "int3nsep")]
    sweep = Sweep(model, TEXT, SETTINGS, Grid(("int3nsep",), ("q8_0",), metrics=("bytes",)))
    for ctk, ctv in pairs:
        session = Session(model, n_ctx=64, ctk=ctk, ctv=ctv)
        session.extend(range(64))
        assert sweep.measure((ctk, ctv)).values["kv_bytes"] == session.cache.nbytes


def test_speed_is_measured_in_tokens_per_second(model: Model) -> None:
    grid = Grid(("q8_0",), ("q8_0",), metrics=("speed",))
    cell = Sweep(model, TEXT, SETTINGS, grid).measure(("q8_0", "q8_0"))
    assert min(cell.values["prefill_tps"], cell.values["decode_tps"]) > 0
    assert len(cell.nll) == 0


def test_the_seed_decides_the_order_and_the_reference_is_a_cell() -> None:
    orders = [SMALL.pairs(seed) for seed in range(5)]
    assert SMALL.pairs(0) == orders[0]
    assert len({tuple(order) for order in orders}) > 1
    cells = {("q8_0", "f16"), ("q8_0", "q4_0"), ("q4_0", "f16"), ("q4_0", "q4_0"), SMALL.base}
    assert all(set(order) == cells and len(order) == 5 for order in orders)


def run(sweep: Sweep, results: Results) -> dict:
    return dict(sweep.run(results, sweep.pending(results, seed=1)))


def test_a_failed_cell_is_recorded_and_tried_again(
    model: Model, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, measure = Sweep(model, TEXT, SETTINGS, SMALL), Sweep.measure

    def failing(self, pair):
        if pair == ("q4_0", "f16"):
            raise MemoryError("no\nroom")
        return measure(self, pair)

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "measure", failing)
        outcomes = run(sweep, results)
    assert outcomes[("q4_0", "f16")] == "MemoryError: no room"
    assert results.errors() == {("q4_0", "f16"): "MemoryError: no room"}
    assert len(results.done()) == 4
    assert list(run(sweep, results)) == [("q4_0", "f16")]
    assert results.errors() == {}


def test_ctrl_c_keeps_finished_cells(
    model: Model, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(model, TEXT, SETTINGS, SMALL)
    cells = sweep.run(results, sweep.pending(results, seed=1))
    first, _ = next(cells)

    def interrupted(self, pair):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sweep, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(cells)
    assert (results.done(), results.errors()) == ({first}, {})


def test_a_cell_that_another_process_has_finished_is_skipped(
    model: Model, results: Results
) -> None:
    sweep = Sweep(model, TEXT, SETTINGS, SMALL)
    pending = sweep.pending(results, seed=1)
    cells = sweep.run(results, pending)
    next(cells)
    Results(results.path, {}).put(sweep.measure(pending[1]))
    assert next(cells)[0] == pending[2]


KILLED = """
import os, signal, sys
from pathlib import Path
from letters import TEXT, letters_model
from test_sweep import SETTINGS, SMALL
from tools.results import Results
from tools.sweep import Sweep
from tools.windows import Windows

sweep = Sweep(letters_model(), TEXT, SETTINGS, SMALL)
results = Results(Path(sys.argv[1]), {"base": ["f16", "f16"]})
scored, runs = Windows.scored, []

def dying(self, session, window):
    runs.append(window)
    if len(runs) == 6:  # the second window of the third cell
        os.kill(os.getpid(), signal.SIGKILL)
    return scored(self, session, window)

Windows.scored = dying
for _ in sweep.run(results, sweep.pending(results, 1)):
    pass
"""


def test_after_kill_9_a_sweep_goes_on_without_repeating_a_cell(
    model: Model, tmp_path: Path
) -> None:
    path, here = tmp_path / "grid.sqlite", Path(__file__).parent
    places = os.pathsep.join(map(str, (here, here.parents[1])))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    results = Results(path, {"base": ["f16", "f16"]})
    order, before = SMALL.pairs(1), results.cells()
    assert results.done() == set(order[:2])
    sweep = Sweep(model, TEXT, SETTINGS, SMALL)
    assert list(run(sweep, results)) == order[2:]
    after = {cell.pair: cell for cell in results.cells()}
    assert len(after) == 5
    for cell in before:
        assert after[cell.pair].values == cell.values  # their seconds, too
        np.testing.assert_array_equal(cell.nll, sweep.measure(cell.pair).nll)


def test_what_no_cell_could_be_measured_with_is_refused_at_once(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for grid, settings, message in (
        ({"ctk": ()}, SETTINGS, "no key types"),
        ({"ctk": ("q3",)}, SETTINGS, "q3: not a KV cache type"),
        ({"metrics": ("ppl", "beauty")}, SETTINGS, "beauty: not a metric. Choose from: ppl"),
        ({"metrics": ()}, SETTINGS, "no metrics"),
        ({}, Settings("llama", 512), "fewer than one window"),
        ({"ctv": ("int3nsep",)}, Settings("pa", 72), "multiple of 64"),
    ):
        with pytest.raises(InputError, match=message):
            Sweep(model, TEXT, settings, Grid(**{"ctk": ("f16",), "ctv": ("f16",)} | grid))
    long = Settings("llama", 2 * model.spec.n_ctx_train, 1)
    with pytest.raises(InputError, match="the model takes 1 to"):
        Sweep(model, TEXT * 100, long, SMALL)
    monkeypatch.setattr("tools.sweep.MAX_STATES", 1000)
    with pytest.raises(InputError, match="use fewer --chunks"):
        Sweep(model, TEXT, SETTINGS, SMALL)
