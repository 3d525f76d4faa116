"""`minikv sweep` measures a grid, goes on with it, and reports it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from command import child
from tiny_model import write_tiny_model

from minikv.answerer import EngineAnswerer
from tools.recall.answer import Answer
from tools.results import Results
from tools.sweep import Sweep


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog.\n\n" * 20)
    return tmp_path


def command(model: Path, *args: object) -> list[object]:
    common = ["sweep", "--backend", "reference", "-m", model, "-f", "text.txt", "-c", 64]
    return [*common, "--ctk", "f16,q8_0", "--ctv", "f16,q4_0", "--db", "grid.sqlite", *args]


def test_a_grid_is_measured_printed_and_not_measured_again(minikv, model, here):
    first = minikv(*command(model))
    assert first.status == 0
    assert first.out.startswith("mean KLD (nats)\n| K \\ V |")
    for title in ("same top p", "perplexity", "KV cache (MiB)", "decoding (tokens/s)"):
        assert title in first.out
    cells = first.err.splitlines()
    assert len(cells) == 4 and all("mean KLD (nats)" in line for line in cells)
    again = minikv(*command(model))
    assert again.out == first.out
    assert again.err == "minikv: 4 cells are finished already in grid.sqlite\n"
    more = minikv(*command(model, "--ctk", "q4_0", "--ctv", "f16"))
    assert [line.split(":")[0] for line in more.err.splitlines()[1:]] == ["q4_0/f16"]


def test_report_prints_markdown_and_writes_every_form(minikv, model, here):
    minikv(*command(model, "--metrics", "ppl,kld"))
    result = minikv("sweep", "report", "--db", "grid.sqlite", "--out", "out")
    assert result.status == 0
    assert result.out.rstrip() == Path("out/report.md").read_text(encoding="utf-8").rstrip()
    assert "command: `minikv sweep --backend reference" in result.out
    assert len(json.loads(Path("out/cells.json").read_text())["cells"]) == 4
    assert result.err.count("out/") == len(list(Path("out").iterdir())) == 5


def test_results_of_another_model_are_refused_and_kept(minikv, model, here):
    minikv(*command(model, "--metrics", "ppl"))
    other = write_tiny_model(here / "other.gguf", endless=True)
    Path("other.txt").write_text("Another text. " * 100)
    for args, told in (
        (["-m", other], f"holds results of model {model} (sha256 "),
        (["-m", other], f"), not {other} (sha256 "),
        (["-f", "other.txt"], "holds results of file text.txt (sha256 "),
        (["-c", 128], "holds results of n_ctx 64, not 128; give another --db"),
        (["--chunks", 1], "holds results of windows 2, not 1"),
        (["--base-ctk", "f32"], "holds results of base f16,f16, not f32,f16"),
    ):
        result = minikv(*command(model, "--metrics", "ppl", *args))
        assert (result.status, result.out) == (1, "")
        assert told in result.err and len(result.err.splitlines()) == 1
    assert len(Results.read(Path("grid.sqlite")).done()) == 4


def test_failed_cells_are_told_at_the_end_with_status_1(minikv, model, here, monkeypatch):
    measure = Sweep.measure

    def failing(self, pair):
        if pair == ("q8_0", "q4_0"):
            raise ValueError("out of luck")
        return measure(self, pair)

    monkeypatch.setattr(Sweep, "measure", failing)
    result = minikv(*command(model, "--metrics", "ppl"))
    assert result.status == 1
    assert "q8_0/q4_0: failed: ValueError: out of luck" in result.err
    assert "1 of 4 cells failed, the first q8_0/q4_0: ValueError" in result.err.splitlines()[-1]
    assert "perplexity" in result.out


def test_ctrl_c_stops_with_one_line_and_keeps_the_finished_cells(model, here):
    slow = command(model, "--metrics", "speed", "-c", 256, "--chunks", 1, "--ctk", "f16,q8_0,q4_0")
    process = child(*slow)
    assert process.stderr is not None
    first = process.stderr.readline().decode()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().decode()
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in rest
    assert "stopped: finished cells are kept in grid.sqlite" in rest.splitlines()[-1]
    done = Results.read(Path("grid.sqlite")).done()
    assert tuple(first.split(":")[0].split("/")) in done and len(done) < 6


def test_recall_is_measured_told_and_reported(minikv, here):
    model = write_tiny_model(here / "long.gguf", n_ctx=8192)
    asked = ["--ctk", "f16", "--metrics", "recall", "--functions", 2, "--value-len", 1]
    result = minikv(*command(model, *asked))
    assert result.status == 0, result.err
    assert "recall (% of targets)\n| K \\ V | f16 | q4_0 | mean |" in result.out
    report = minikv("sweep", "report", "--db", "grid.sqlite", "--out", "out").out
    assert "## Recall" in report and "| f16/f16  | 0 of 2 |" in report
    other = minikv(*command(model, *asked, "--confusable", 2))
    assert "holds results of recall random-bodies functions=2 value_len=1 conf" in other.err


def test_a_cell_with_an_unanswered_target_is_told_and_finished(minikv, here, monkeypatch):
    model = write_tiny_model(here / "long.gguf", n_ctx=8192)
    asked = ["--ctk", "f16", "--metrics", "ppl,recall", "--functions", 1, "--value-len", 1]
    with monkeypatch.context() as patch:
        patch.setattr(EngineAnswerer, "__call__", lambda *_: Answer("", "stop"))
        result = minikv(*command(model, *asked))
    assert result.status == 0
    assert ", 1 targets unanswered; " in result.err
    assert "perplexity" in result.out and "recall" not in result.out
    assert "2 cells are finished already" in minikv(*command(model, *asked)).err
    report = minikv("sweep", "report", "--db", "grid.sqlite", "--out", "out").out
    assert "| f16/f16  | 0 of 0 |" in report


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_finished_cells(
    minikv, model, here, monkeypatch
):
    run = Sweep.run

    def filling(self, results, pending):
        outcomes = run(self, results, pending)
        yield next(outcomes)
        (pages,) = results._db.execute("PRAGMA page_count").fetchone()
        results._db.execute(f"PRAGMA max_page_count = {pages}")
        results.put_error(("x", "x"), "a line that finds no room " * 1000)

    monkeypatch.setattr(Sweep, "run", filling)
    result = minikv(*command(model, "--metrics", "ppl"))
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[1:] == ["minikv: grid.sqlite: database or disk is full"]
    assert len(Results.read(Path("grid.sqlite")).done()) == 1


def test_a_cluster_measures_the_grid_from_wherever_its_workers_are(minikv, model, here):
    distributed = pytest.importorskip("distributed")
    options = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(n_workers=2, **options) as cluster:
        address = cluster.scheduler_address.replace("tcp", "dask")
        args = ["--metrics", "ppl,bytes", "--executor", address]
        first = minikv(*command(Path(os.path.relpath(model)), *args))
    assert (first.status, len(first.err.splitlines())) == (0, 4), first.err
    local = minikv(*command(model, "--metrics", "ppl,bytes", "--db", "local.sqlite"))
    assert first.out == local.out
    again = minikv(*command(model, "--metrics", "ppl,bytes"))
    assert again.err == "minikv: 4 cells are finished already in grid.sqlite\n"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["--metrics", "beauty"],
            "beauty: not a metric. Choose from: ppl, kld, recall, bytes, speed",
        ),
        (["--metrics", "recall"], "exceed the model's context of 256; use fewer --functions"),
        (["--functions", 0], "functions 0: must be 1 to 10000"),
        (["--executor", "ray"], "--executor ray: choose local or dask://HOST:PORT"),
        (["--ctk", "f16,q3"], "q3: not a KV cache type"),
        (["--ctv", ","], "no value types: the grid has no cells"),
        (["--db", "absent/grid.sqlite"], "absent/grid.sqlite: unable to open database file"),
        (["--db", "text.txt"], "text.txt: file is not a database"),
        (["-c", 512], "context of 512 tokens: the model takes 1 to 256"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(minikv, model, here, args, told):
    result = minikv(*command(model), *args)
    assert (result.status, result.out) == (1, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_a_report_of_nothing_is_refused(minikv, here):
    result = minikv("sweep", "report", "--db", "absent.sqlite", "--out", "out")
    assert (result.status, result.out) == (1, "")
    assert "absent.sqlite: no such results file" in result.err
    assert not Path("out").exists()
