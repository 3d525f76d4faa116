"""`minikv bench` prints each result when it is there, and refuses before it measures."""

from __future__ import annotations

import json

import pytest

from engine import InputError
from minikv import bench_run
from minikv.lists import numbers, pair

SMALL = ["-p", 4, "-n", 2, "-r", 2, "--backend", "reference"]


def test_results_are_on_stdout_and_progress_is_on_stderr(minikv, model):
    args = ["-ctk", "q8_0", "-ctv", "f16", "-d", "0,3", "-pg", "2,1", "-t", "1,2"]
    result = minikv("bench", "-m", model, *SMALL, *args)
    assert result.status == 0
    header, _, *rows, _, build = result.out.splitlines()
    assert "| threads | type_k |            test |" in header and "type_v" not in header
    tests = ["pp4", "tg2", "pp2+tg1", "pp4 @ d3", "tg2 @ d3", "pp2+tg1 @ d3"]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    named = [(threads, kind, test) for *_, threads, kind, test, _ in cells]
    assert named == [(threads, "q8_0", test) for threads in "12" for test in tests]
    assert {cell[0] for cell in cells} == {"llama 1M F32"}
    assert build.startswith("build: minikv-")
    told = [f"minikv: test {i} of 12: q8_0/f16 {tests[(i - 1) % 6]}" for i in range(1, 13)]
    assert result.err.splitlines() == told


def test_json_tells_the_samples_and_the_model(minikv, model):
    result = minikv("bench", "-m", model, "-m", model, *SMALL, "-o", "json")
    records = json.loads(result.out)
    assert [(r["n_prompt"], r["n_gen"]) for r in records] == 2 * [(4, 0), (0, 2)]
    first = records[0]
    assert (first["model_filename"], first["type_k"]) == (str(model), "bf16")
    assert first["backends"] == "REFERENCE"
    assert len(first["samples_ns"]) == 2 and min(first["samples_ns"]) > 0
    rates = [4e9 / ns for ns in first["samples_ns"]]
    assert first["samples_ts"] == pytest.approx(rates, rel=1e-5)
    assert first["avg_ts"] == pytest.approx(sum(rates) / 2, rel=1e-5)


@pytest.mark.parametrize("output", ["md", "csv", "json", "jsonl", "sql"])
def test_ctrl_c_keeps_the_finished_results(minikv, model, monkeypatch, output):
    measure = bench_run.measure

    def interrupted(*args):
        yield next(measure(*args))
        raise KeyboardInterrupt

    whole = minikv("bench", "-m", model, "-p", 4, "-n", 0, "--backend", "reference", "-o", output)
    monkeypatch.setattr(bench_run, "measure", interrupted)
    result = minikv("bench", "-m", model, *SMALL, "-o", output)
    assert result.status == 130
    assert len(result.out.splitlines()) == len(whole.out.splitlines())
    if output == "json":
        assert len(json.loads(result.out)) == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-p", "x"], "-p 'x': not a number or a range such as 0-4096+1024 or 128-1024*2"),
        (["-n", "-1"], "-n '-1': not a number"),
        (["-d", "1,,2"], "-d '': not a number"),
        (["-pg", "3"], "-pg '3': not a prompt and a generation such as 512,128"),
        (["-d", 300], "pp4 @ d300: takes 304 tokens, the model's context is 256"),
        (["-ctv", "q3"], "q3: not a KV cache type"),
        (["-o", "xml"], "xml: not an output format. Choose from: md, csv, json, jsonl, sql"),
        (["-r", 0], "repetitions 0: must be 1 or more"),
        (["--backend", "tpu"], "tpu: not a backend. Choose from: cpu, reference"),
        (["-m", "absent.gguf"], "absent.gguf"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(minikv, model, args, told):
    result = minikv("bench", "-m", model, *SMALL, *args)
    assert (result.status, result.out) == (1, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_nothing_to_measure_is_refused(minikv, model):
    result = minikv("bench", "-m", model, "-p", 0, "-n", 0)
    assert (result.status, result.out) == (1, "")
    assert result.err == "minikv: nothing to measure: -p, -n and -pg name no tokens\n"


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        (["512"], (512,)),
        (["1,2", "3"], (1, 2, 3)),
        (["5-7"], (5, 6, 7)),
        (["0-10+4, 99"], (0, 4, 8, 99)),
        (["128-1024*2"], (128, 256, 512, 1024)),
    ],
)
def test_lists_are_llama_benchs(lists, found):
    assert numbers("-p", lists) == found


@pytest.mark.parametrize(
    "text", ["1-999999999", "4-1", "1-5*1", "0-5*2", "1-5+0", "1+2", "", "1-2-3"]
)
def test_lists_without_end_or_sense_are_refused(text):
    with pytest.raises(InputError, match=r"^-p"):
        numbers("-p", [text])


def test_a_pair_is_two_numbers():
    assert pair("512,128") == (512, 128)
    with pytest.raises(InputError, match=r"^-pg '1,2,3'"):
        pair("1,2,3")
