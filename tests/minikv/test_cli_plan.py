"""`minikv plan` tells bytes before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_model

from engine.kv.formats import BEST, KV_FORMATS
from engine.kv.policy import Policy
from engine.model.load import open_checkpoint
from minikv.text import nbytes_of
from tools.plan import Plan
from tools.ppl import files_sha256
from tools.results import Cell, Results


@pytest.fixture
def database(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "grid.sqlite"
    results = Results(path, {"model_sha256": files_sha256((model,))}, {"model": "tiny"})
    for pair, kld in ((("f16", "f16"), 0.0), (("q8_0", "int4nsep"), 0.004), (("q4_0", "q4_0"), 1)):
        results.put(Cell(pair, {"mean_kld": kld}, np.zeros(0)))
    results.close()
    return path


def test_json_has_the_bytes_of_every_pair_and_context(minikv, model):
    result = minikv(
        "plan", "-m", model, "-c", "128,256", "-ctk", "f16,q8_0", "-ctv", "int3nsep",
        "--memory", "2M", "--json",
    )  # fmt: skip
    assert result.status == 0
    told, plan = json.loads(result.out), Plan(open_checkpoint(model))
    assert told["weights_bytes"] == plan.weights
    assert [(p["ctk"], p["ctv"]) for p in told["pairs"]] == [
        ("f16", "int3nsep"),
        ("q8_0", "int3nsep"),
    ]
    for pair in told["pairs"]:
        policy = Policy.of(pair["ctk"], pair["ctv"])
        assert pair["largest_context"] == plan.largest_context(policy, 2 << 20)
        for context, n in zip(pair["contexts"], (128, 256), strict=True):
            assert context["n_ctx"] == n
            assert context["cache_bytes"] == plan.cache_most(policy, n)
            parts = told["weights_bytes"] + context["cache_bytes"] + context["scratch_bytes"]
            assert context["total_bytes"] == parts == plan.total(policy, n)


def test_the_table_lists_every_type_and_three_contexts(minikv, model):
    out = minikv("plan", "-m", model, "--memory", "1G").out
    heading, *rows = out[out.index("KV type") :].splitlines()
    for part in ("cache 16", "cache 64", "cache 256", "total 256", "context in 1.0 GiB"):
        assert part in heading
    assert [row.split()[0] for row in rows] == list(KV_FORMATS)
    assert all("256 (all)" in row for row in rows)


def test_a_budget_below_the_weights_fits_nothing(minikv, model):
    out = minikv("plan", "-m", model, "--memory", "1000", "--ctk", "f16").out
    assert out.splitlines()[-1].endswith("nothing")


def test_the_cheapest_measured_pair_is_named(minikv, model, database):
    command = ("plan", "-m", model, "--db", database)
    told = json.loads(minikv(*command, "--json").out)["cheapest"]
    assert (told["bound"], told["mean_kld"]) == (0.02, 0.004)
    assert (told["pair"]["ctk"], told["pair"]["ctv"]) == ("q8_0", "int4nsep")
    last = minikv(*command, "--bound", "2").out.splitlines()[-1]
    assert "at most 2: q4_0/q4_0, 1.000000; " in last
    Results(database, {}).put(Cell(("f16", "f16"), {"mean_kld": 0.1}, np.zeros(0)))
    last = minikv(*command, "--bound", "0.001").out.splitlines()[-1]
    assert last == "no measured pair has a mean KLD of at most 0.001"


def test_a_budgets_plan_is_what_the_answer_then_takes(minikv, tmp_path):
    path = write_tiny_model(tmp_path / "endless.gguf", endless=True, n_ctx=2048)
    given = ["-c", 256, "-ctk", "int8nsep:32", "-ctv", "int8nsep:32", "--kv-budget", "130K"]
    told = json.loads(minikv("plan", "-m", path, *given, "--json").out)
    (pair,) = told["pairs"]
    (context,) = pair["contexts"]
    common = ["run", "--backend", "reference", "-m", path, "--raw", *given, "--json"]
    kv = json.loads(minikv(*common, "a" * 200).out)["kv"]
    assert kv["tokens"] == context["tokens"] == 256
    names = ("budget_bytes", "budget_ctk", "budget_ctv", "budget_tokens", "small_k", "small_v")
    planned = told | pair | context
    for name in names[:3] + names[4:]:
        assert planned[name] == kv[name]
    assert context["cache_bytes"] == kv["bytes"] and pair["budget_tokens"] > 256
    table = minikv("plan", "-m", path, *given).out
    assert "KV budget 130.0 KiB; in brackets" in table and "%/" in table
    last = minikv("plan", "-m", path, "-ctk", "f32", "--kv-budget", "1000").out.splitlines()[-1]
    assert last.split()[:4] == ["f32/bf16", "too", "small", "too"]


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8G", 8 << 30), ("512M", 512 << 20), ("1.5 GiB", 3 << 29), ("4096", 4096), ("2kb", 2048)],
)
def test_sizes_are_read_in_binary_units(text, nbytes):
    assert nbytes_of("--memory", text) == nbytes


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--memory", "lots"], "--memory 'lots': not a size"),
        (["--memory", "0G"], "--memory '0G': not a size"),
        (["--memory", "-1"], "--memory '-1': not a size"),
        (["-c", "512"], "-c 512: the model takes 1 to 256"),
        (["-c", "12,x"], "-c 'x': not a number of tokens"),
        (["-c", ","], "-c: the list is empty"),
        (["--ctk", "q3"], "q3: not a KV cache type"),
        (["--bound", "1"], "--bound needs --db"),
        (["--kv-budget", "1M", "--memory", "1G"], "--memory is for caches that keep their types"),
        (["--kv-budget", "1M", "--db", "x"], "--db is for caches that keep their types"),
        (["--budget-ctk", "q4_0"], "--budget-ctk and --budget-ctv need --kv-budget"),
        (["--ctk", "q8_0", "--kv-budget", "1M", "--budget-ctk", "f32"], "f32: its pages take "),
        (["--db", "absent.sqlite"], "absent.sqlite: no such results file"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(minikv, model, args, told):
    result = minikv("plan", "-m", model, *args)
    assert (result.status, result.out) == (1, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_figures_of_another_model_are_refused(minikv, model, tmp_path):
    path = tmp_path / "other.sqlite"
    Results(path, {"model_sha256": "0" * 64}, {"model": "other"}).close()
    result = minikv("plan", "-m", model, "--db", path)
    assert (result.status, result.out) == (1, "")
    assert "holds results of other, not of" in result.err


def test_lists_of_types_take_aliases(minikv, model):
    out = minikv("plan", "-m", model, "-c", 128, "-ctk", "f16,best3", "-ctv", "best3", "--json").out
    k, v = BEST["best3"]["k"], BEST["best3"]["v"]
    assert [(p["ctk"], p["ctv"]) for p in json.loads(out)["pairs"]] == [("f16", v), (k, v)]
