"""`minikv ppl` reports a measurement completely."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from engine import load_model
from tools.ppl import Perplexity
from tools.windows import Settings


def measure(model: Path, text: Path, *args: object) -> list[object]:
    common = ["ppl", "--backend", "reference", "-m", model, "-f", text, "-c", 64, "--chunks", 3]
    return [*common, *args]


@pytest.mark.parametrize("protocol", ["llama", "pa", "decode"])
def test_json_is_the_measurement_of_the_tool(minikv, model, text, protocol):
    args = ["--protocol", protocol, "-ctk", "q8_0", "-ctv", "int3nsep:32", "--json"]
    result = minikv(*measure(model, text, *args))
    assert result.status == 0
    told = json.loads(result.out)
    settings = Settings(protocol, 64, 3, "q8_0", "int3nsep:32")
    measurement = Perplexity(load_model(model, backend="reference"), text.read_text(), settings)
    *_, score = measurement
    assert (told["ppl"], told["ppl_stderr"]) == (score.ppl, score.ppl_stderr)
    assert (told["tokens"], told["windows"]) == (score.tokens, 3)
    assert (told["bits_k"], told["bits_v"]) == measurement.bits()
    assert told["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    names = ("protocol", "ctk", "ctv", "n_ctx")
    assert [told[name] for name in names] == [protocol, "q8_0", "int3nsep:32", 64]
    assert told["seconds"] > 0


def test_sinks_count_for_the_measured_types(minikv, model, text):
    args = ["--protocol", "decode", "-ctv", "int3nsep:32", "--kv-sink", 4]
    assert json.loads(minikv(*measure(model, text, *args, "--json")).out)["sink"] == 4
    assert minikv(*measure(model, text, *args)).out.startswith("KV bf16/int3nsep:32+sink4: ")
    settings = Settings("decode", 64, 3, "bf16", "int3nsep:32", sink=4)
    measurement = Perplexity(load_model(model, backend="reference"), text.read_text(), settings)
    assert [kind.sink for kind in measurement.policy.types] == [4, 4]


def test_the_estimate_runs_on_stderr_and_ends_on_stdout(minikv, model, text):
    result = minikv(*measure(model, text))
    assert result.err.startswith("[1]")
    assert result.err.count(",") == 3
    *_, last = result.out.splitlines()
    assert last.startswith("Final estimate: PPL = ")
    assert last.split()[4] == result.err.rstrip(",\n").rpartition("]")[2]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--protocol", "other"], "other: not a protocol. Choose from: llama, pa, decode"),
        (["--chunks", 0], "chunks 0: must be 1 or more"),
        (["-c", 7], "context 7: must be an even number from 4 up"),
        (["-c", 512], "context of 512 tokens: the model takes 1 to 256"),
        (["-ctk", "q3"], "q3: not a KV cache type"),
        (["--protocol", "pa", "--kv-sink", 4], "4 exact first tokens: protocol pa takes none"),
        (["--bos-per-window"], "no BOS token"),
        (["-f", "absent.txt"], "absent.txt: cannot be read: No such file"),
        (["-f", "."], ".: cannot be read: Is a directory"),
        (["-f", "latin1.txt"], "latin1.txt: not UTF-8 text: byte 3 is invalid"),
        (["-f", "short.txt"], "fewer than one window of 64"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    minikv, model, text, monkeypatch, tmp_path, args, told
):
    monkeypatch.chdir(tmp_path)
    Path("latin1.txt").write_bytes(b"caf\xe9")
    Path("short.txt").write_text("short")
    result = minikv(*measure(model, text), *args)
    assert (result.status, result.out) == (1, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1
