"""`--kv-budget SIZE`: what it did is told, and what it cannot do is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

FIRST = ("-ctk", "int8nsep:32", "-ctv", "int8nsep:32")


@pytest.fixture
def tiny(tmp_path: Path) -> list[object]:
    path = write_tiny_model(tmp_path / "endless.gguf", endless=True, n_ctx=2048)
    return ["run", "--backend", "reference", "-m", path, "--raw", "-n", 2, "-c", 256, *FIRST]


def test_the_closing_line_and_the_json_tell_what_became_small(minikv, tiny):
    result = minikv(*tiny, "--kv-budget", "130K", "a" * 200)
    assert result.status == 0
    assert " of 130.0 KiB (" in result.err and "of values int3wf:32)" in result.err
    kv = json.loads(minikv(*tiny, "--kv-budget", "130K", "--json", "a" * 200).out)["kv"]
    assert kv["bytes"] <= kv["budget_bytes"] == 130 << 10
    assert kv["budget_tokens"] == 256 and kv["budget_ctk"] == kv["budget_ctv"] == "int3wf:32"
    assert 0 <= kv["small_k"] < kv["small_v"] <= 1
    plain = json.loads(minikv(*tiny, "--json", "a" * 200).out)["kv"]
    assert "budget_bytes" not in plain and plain["bytes"] > kv["bytes"]
    roomy = minikv(*tiny, "--kv-budget", "1G", "a" * 200)
    assert " of 1.0 GiB, " in roomy.err


def test_named_types_are_those_that_pages_become(minikv, tiny):
    given = ("--kv-budget", "150K", "--budget-ctk", "int8nsep:32", "--budget-ctv", "best2:32")
    kv = json.loads(minikv(*tiny, *given, "--json", "a" * 200).out)["kv"]
    assert (kv["budget_ctk"], kv["budget_ctv"]) == (None, "int2wf:32")
    assert kv["small_k"] == 0 < kv["small_v"]


def test_an_answer_ends_where_the_budget_does(minikv, tiny):
    tiny[tiny.index("-n") + 1] = 300
    given = ("--kv-budget", "90K", "--json")
    answer = json.loads(minikv(*tiny, *given, "a" * 20).out)
    assert answer["finish"] == "context"
    assert answer["kv"]["tokens"] == answer["kv"]["budget_tokens"] < 256
    result = minikv(*tiny, "--kv-budget", "90K", "a" * 20)
    fits = answer["kv"]["budget_tokens"]
    said = f"the KV budget of 90.0 KiB is full: the answer ends here, after {fits} tokens"
    assert said in result.err
    result = minikv(*tiny, "--kv-budget", "90K", "a" * 250)
    assert (result.status, result.out) == (1, "")
    assert f"the prompt has 250 tokens, the KV budget takes {fits}; shorten it" in result.err


def test_a_kept_conversation_keeps_its_budget(minikv, tiny, tmp_path):
    kept = ("--session", tmp_path / "s.kv", "--json")
    minikv(*tiny, *kept, "--kv-budget", "130K", "a" * 150)
    kv = json.loads(minikv(*tiny, *kept, "a" * 200).out)["kv"]
    assert kv["bytes"] <= kv["budget_bytes"] == 130 << 10
    result = minikv(*tiny, *kept, "--kv-budget", "80K", "a" * 200)
    assert result.status == 1 and "that fit a KV budget of 81920 bytes" in result.err


def test_a_budget_goes_with_a_policy(minikv, tiny, tmp_path):
    path = tmp_path / "mixed.toml"
    path.write_text(
        'k = "int8nsep:32"\nv = "int8nsep:32"\nrecent = 20\n'
        '[[layers]]\nfirst = 1\nk = "int3nsep:32"\n'
    )
    own = [*tiny[: -len(FIRST)], "--kv-policy", path, "--kv-budget", "130K", "--json"]
    kept = ("--session", tmp_path / "s.kv")
    kv = json.loads(minikv(*own, *kept, "a" * 150).out)["kv"]
    assert kv["budget_ctk"] == "int2wf:32,int3wf:32" and kv["small_v"] > 0
    assert kv["bytes"] <= kv["budget_bytes"]
    again = [*tiny[: -len(FIRST)], *kept, "--json", "a" * 170]
    after = json.loads(minikv(*again).out)["kv"]
    assert {name: after[name] for name in ("ctk", "recent", "budget_ctk", "budget_bytes")} == {
        name: kv[name] for name in ("ctk", "recent", "budget_ctk", "budget_bytes")
    }
    assert after["bytes"] <= after["budget_bytes"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--kv-budget", "much"), "--kv-budget 'much': not a size; write bytes, or 512M"),
        (("--kv-budget", "0"), "--kv-budget '0': not a size"),
        (("--kv-budget", "1K"), "KV budget of 1024 bytes: too small, the first tokens alone take"),
        (("--budget-ctk", "int3wf"), "--budget-ctk and --budget-ctv need --kv-budget SIZE"),
        (("--kv-budget", "1M", "--budget-ctv", "q9"), "q9: not a KV cache type"),
        (("--kv-budget", "1M", "--budget-ctv", "f16"), "f16: its pages take"),
        (("--kv-budget", "1M", "--budget-ctk", "int3nsep"), "int3nsep: its pages have 128 tokens"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_in_one_line(minikv, tiny, given, said):
    result = minikv(*tiny, *given, "a")
    assert (result.status, result.out) == (1, "")
    assert said in result.err and len(result.err.splitlines()) == 1
