"""`--kv-policy FILE` wherever a cache is chosen, under a name of its own in results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from engine.kv.policy_file import read_policy
from engine.model.load import open_checkpoint
from tools.plan import Plan

MIXED = """
k = "int3nsep:32"
v = "q4_0"
sink = 2
recent = 8
[[layers]]
first = 1
k = "q8_0"
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.toml"
    path.write_text(MIXED)
    return path


def test_an_answer_tells_the_types_of_all_layers(minikv, model, policy):
    common = ["run", "--backend", "reference", "-m", model, "--temp", 0, "--kv-policy", policy]
    told = minikv(*common, "Hi").err
    assert "KV q8_0,int3nsep:32/q4_0+sink2+recent8, " in told
    kv = json.loads(minikv(*common, "--json", "Hi").out)["kv"]
    assert (kv["ctk"], kv["ctv"]) == ("q8_0,int3nsep:32", "q4_0")
    assert (kv["sink"], kv["recent"]) == (2, 8)


@pytest.mark.parametrize("command", ["ppl", "kld"])
def test_results_are_labelled_by_file_and_digest(minikv, model, text, policy, command):
    common = [command, "--backend", "reference", "-m", model, "-f", text, "-c", 64, "--chunks", 2]
    name = read_policy(policy).name
    told = json.loads(minikv(*common, "--kv-policy", policy, "--json").out)
    assert told["ctk"] == told["ctv"] == name and name.startswith("mixed.toml@")
    assert (told["sink"], told["recent"]) == (2, 8)
    k, v = told["bits_k"], told["bits_v"]
    assert v == 5.4 and 3 < k < 8.5  # 80 channels in three blocks of 32; a mean of both types
    assert f"KV {name}" in minikv(*common, "--kv-policy", policy).out


def test_a_recall_dump_names_the_policy(minikv, model, policy, tmp_path):
    minikv(
        "recall", "random-bodies", "--functions", 2, "--value-len", 4, "-k", 1, "-n", 1,
        "--backend", "reference", "-m", model, "--kv-policy", policy, "--dump", tmp_path / "d",
    )  # fmt: skip
    about = json.loads((tmp_path / "d").read_text())["run"]["answerer"]
    assert about["ctk"] == about["ctv"] == read_policy(policy).name


def test_a_sweep_measures_policies_beside_pairs_and_plan_finds_them(
    minikv, model, text, policy, tmp_path
):
    other = tmp_path / "other.toml"
    other.write_text("k = 'q4_0'\nv = 'q4_0'")
    common = ["sweep", "--backend", "reference", "-m", model, "-f", text, "-c", 64, "--db"]
    common += [tmp_path / "grid.sqlite", "--metrics", "kld,bytes", "--chunks", 1]
    files = ["--kv-policy", policy, "--kv-policy", other]
    result = minikv(*common, *files, "-ctk", "q8_0", "-ctv", "f16")
    assert result.status == 0, result.err
    names = [read_policy(path).name for path in (policy, other)]
    table = result.out.split("policies\n")[1]
    assert all(f"| {name} |" in table and f"\n{name}: " in f"\n{result.err}" for name in names)
    assert "3 cells are finished already" in minikv(*common, *files).err
    command = ["plan", "-m", model, "-c", 256, "--db", tmp_path / "grid.sqlite", "--bound", 100]
    assert f": {names[1]}, " in minikv(*command).out.splitlines()[-1]


def test_a_ruler_record_names_the_policy(minikv, policy, tmp_path):
    model = write_tiny_model(tmp_path / "long.gguf", n_ctx=700)
    common = ["ruler", "-m", model, "-c", 700, "-n", 5, "--samples", 1, "--tasks", "single"]
    common += ["--backend", "reference", "--dump", tmp_path / "d", "--json"]
    minikv(*common)
    caches = json.loads(minikv(*common, "--kv-policy", policy).out)["caches"]
    name = read_policy(policy).name
    assert list(caches) == ["bf16/bf16", name]
    assert (caches[name]["ctk"], caches[name]["recent"]) == (name, 8)


def test_plan_and_info_tell_its_bytes(minikv, model, policy):
    stored, plan = read_policy(policy), Plan(open_checkpoint(model))
    told = json.loads(minikv("plan", "-m", model, "-c", 256, "--kv-policy", policy, "--json").out)
    (pair,) = told["pairs"]
    assert pair["ctk"] == stored.name and (pair["sink"], pair["recent"]) == (2, 8)
    assert pair["contexts"][0]["cache_bytes"] == plan.cache_most(stored, 256)
    assert stored.name in minikv("plan", "-m", model, "--kv-policy", policy).out
    costs = json.loads(minikv("info", model, "--kv-policy", policy, "--json").out)["kv"]
    assert costs[-1]["type"] == stored.name
    assert stored.name in minikv("info", model, "--kv-policy", policy).out


def test_plan_knows_exact_first_tokens(minikv, model):
    def planned(*args: object) -> int:
        told = json.loads(minikv("plan", "-m", model, "-c", 256, "-ctk", "q4_0", *args).out)
        return told["pairs"][0]["contexts"][0]["cache_bytes"]

    # 4 tokens of two layers, two heads of 80 channels and two sides in bf16
    assert planned("--json", "--kv-sink", 4) == planned("--json") + 4 * 2 * 2 * 80 * 2 * 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["-ctk", "q8_0"], "it says what --ctk says; give one of them"),
        (["-ctv", "q8_0"], "it says what --ctv says"),
        (["--kv-sink", "4"], "it says what --kv-sink says"),
    ],
)
@pytest.mark.parametrize("command", ["run", "ppl", "kld", "recall", "ruler", "plan"])
def test_a_policy_beside_what_it_replaces_is_refused(
    minikv, model, text, policy, command, given, told
):
    needs = {"ppl": ["-f", text], "kld": ["-f", text], "recall": [text], "run": ["Hi"]}
    args = [command, "-m", model, "--kv-policy", policy, *given, *needs.get(command, [])]
    result = minikv(*args)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("minikv: --kv-policy ") and told in result.err
    assert result.err.count("\n") == 1


def test_a_wrong_policy_is_refused_before_the_model_is_looked_for(minikv, policy, text):
    policy.write_text("k = 'q3'")
    result = minikv("ppl", "-m", "no-such-model", "-f", text, "--kv-policy", policy)
    assert result.status == 1 and "mixed.toml: k: q3: not a KV cache type" in result.err


def test_layers_that_the_model_has_not_are_refused(minikv, model, policy):
    policy.write_text("[[layers]]\nfirst = 9\nk = 'q8_0'")
    result = minikv("plan", "-m", model, "--kv-policy", policy)
    assert result.status == 1 and "first = 9: the model has 2 layers" in result.err


def test_the_published_protocol_takes_no_exact_tokens(minikv, model, text, policy):
    result = minikv("ppl", "--protocol", "pa", "-f", text, "-m", model, "--kv-policy", policy)
    assert result.status == 1 and "protocol pa takes none" in result.err


def test_a_kept_conversation_keeps_its_policy(minikv, model, policy, tmp_path):
    common = ["run", "--backend", "reference", "-m", model, "--session", tmp_path / "s", "--json"]
    first, second = (
        json.loads(minikv(*common, "-n", 3, *more, "Hi").out)["kv"]
        for more in (["--kv-policy", policy], [])
    )
    for name in ("ctk", "ctv", "sink", "recent"):
        assert second[name] == first[name]
    assert first["recent"] == 8 and second["tokens"] > first["tokens"]
