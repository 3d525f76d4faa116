"""`minikv info` tells what is in the file, `minikv pull` where models come from."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_model import HEAD_DIM, KV_HEADS, LAYERS, TEXTS, tensors, write_tiny_model

from engine import Session, load_model
from engine.kv.formats import KV_FORMATS
from minikv.sources import CATALOGUE

ORACLE = Path(__file__).parents[1] / "fixtures" / "oracle"


def test_info_counts_what_the_file_holds(minikv, model):
    told = json.loads(minikv("info", "--json", model).out)
    weights = tensors(endless=False)
    assert told["architecture"] == "llama"
    assert told["parameters"] == sum(weight.size for weight in weights.values())
    assert told["file_bytes"] == model.stat().st_size
    assert (told["layers"], told["kv_heads"], told["head_dim"]) == (LAYERS, KV_HEADS, HEAD_DIM)
    assert (told["context"], told["vocabulary"]) == (256, len(TEXTS))
    assert told["licence"] == "CC0-1.0"
    assert told["tokenizer"] == {"kind": "gpt2 (gpt-2)", "chat_template": True}
    nbytes = sum(weight.nbytes for weight in weights.values())
    assert told["tensor_types"] == [{"type": "F32", "tensors": len(weights), "bytes": nbytes}]


def test_bytes_per_token_are_those_of_a_full_cache(minikv, model):
    loaded = load_model(model, backend="reference")
    told = {cost["type"]: cost for cost in json.loads(minikv("info", "--json", model).out)["kv"]}
    assert list(told) == list(KV_FORMATS)
    for name, cost in told.items():
        session = Session(loaded, ctk=name, ctv=name)
        session.extend([1] * 256)  # two full pages
        tails = sum(
            side._tail.nbytes for layer in session.cache.layers for side in (layer.k, layer.v)
        )
        assert 256 * cost["bytes_per_token"] == session.cache.nbytes - tails
        values = LAYERS * 2 * KV_HEADS * HEAD_DIM
        assert cost["bits_per_value"] == 8 * cost["bytes_per_token"] / values


def test_the_table_says_the_same_and_cannot_drive_the_terminal(minikv, model):
    result = minikv("info", model)
    assert (result.status, result.err) == (0, "")
    assert "(Tiny \ufffd[31m model)" in result.out
    for name in KV_FORMATS:
        assert any(line.startswith(f"{name} ") for line in result.out.splitlines())


def test_a_folder_without_a_tokenizer_is_described(minikv):
    told = json.loads(minikv("info", "--json", ORACLE / "gemma3").out)
    assert told["tokenizer"] == {"kind": None, "chat_template": False}
    assert told["windows"], "gemma3 has layers with a sliding window"
    assert "see only the last" in minikv("info", ORACLE / "gemma3").out


def test_a_base_model_is_said_to_complete_text(minikv, tmp_path):
    base = write_tiny_model(tmp_path / "base.gguf", template=None)
    assert "no: it completes text" in minikv("info", base).out


def test_pull_lists_every_model_with_a_name(minikv, monkeypatch, tmp_path):
    monkeypatch.setenv("MINIKV_HOME", str(tmp_path))
    result = minikv("pull")
    assert result.status == 0
    head, *lines = result.out.splitlines()
    assert head.split() == ["model", "size", "licence", "here", "about", "source"]
    assert [line.split()[0] for line in lines] == list(CATALOGUE)
    assert all(" no " in line for line in lines)


def test_pull_prints_the_path_of_a_model_that_is_there(minikv, model):
    assert minikv("pull", model).out == f"{model}\n"
