"""`minikv kld` reports a measurement completely."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import load_model
from engine.kv.formats import BEST
from tools.kld import Divergence
from tools.kld_report import Statistics, by_position, report
from tools.windows import Settings


def command(model: Path, text: Path, *args: object) -> list[object]:
    common = ["kld", "--backend", "reference", "-m", model, "-f", text, "-c", 64, "--chunks", 3]
    return [*common, "-ctk", "q8_0", "-ctv", "q4_0", *args]


def measured(model: Path, text: Path, base: tuple[str, str]) -> Divergence:
    settings = Settings("llama", 64, 3, "q8_0", "q4_0")
    return Divergence(load_model(model, backend="reference"), text.read_text(), settings, base)


def test_json_is_the_measurement_of_the_tool(minikv, model, text):
    result = minikv(*command(model, text, "--base-ctk", "f32", "--base-ctv", "bf16", "--json"))
    assert result.status == 0
    told = json.loads(result.out)
    measurement = measured(model, text, ("f32", "bf16"))
    *_, tokens = measurement
    expected = Statistics(tokens).values()
    assert {name: told[name] for name in expected} == expected
    assert (told["bits_k"], told["bits_v"]) == measurement.bits()
    names = ("tokens", "windows", "ctk", "ctv", "base_ctk", "base_ctv", "protocol", "n_ctx")
    assert [told[name] for name in names] == [93, 3, "q8_0", "q4_0", "f32", "bf16", "llama", 64]
    depths = [(d.start, d.tokens, d.kld.value) for d in by_position(tokens, 64)]
    for name, means in told["by_window"].items():
        assert len(means) == 3 and sum(means) / 3 == pytest.approx(told[name])
    parts = told["kld_by_position"]
    assert [(d["start"], d["tokens"], d["mean_kld"]) for d in parts] == depths
    assert len(told["model_sha256"]) == 64


def test_the_report_is_on_stdout_and_a_line_per_window_on_stderr(minikv, model, text):
    result = minikv(*command(model, text))
    *_, tokens = measured(model, text, ("f16", "f16"))
    assert result.out.startswith(report(Statistics(tokens)) + "\n")
    assert "====== KL divergence by position ======" in result.out
    header, *lines = result.err.rstrip().splitlines()
    assert header.startswith("chunk ")
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]


def test_plot_draws_a_picture(minikv, model, text, tmp_path):
    assert minikv(*command(model, text, "--plot", tmp_path / "depth.png")).status == 0
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--protocol", "other"], "other: not a protocol"),
        (["--base-ctv", "q3"], "q3: not a KV cache type"),
        (["-c", 512], "context of 512 tokens: the model takes 1 to 256"),
        (["--plot", "depth.svg"], "depth.svg: pictures are PNG files"),
        (["-f", "absent.txt"], "absent.txt: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(minikv, model, text, args, told):
    result = minikv(*command(model, text), *args)
    assert (result.status, result.out) == (1, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_aliases_of_types_are_told_as_the_types_of_each_side(minikv, model, text):
    common = ["kld", "--backend", "reference", "-m", model, "-f", text, "-c", 16, "--chunks", 1]
    best = ["-ctk", "best3", "-ctv", "best2", "--base-ctk", "best2", "--base-ctv", "best3"]
    told = json.loads(minikv(*common, *best, "--json").out)
    names = [told[name] for name in ("ctk", "ctv", "base_ctk", "base_ctv")]
    assert names == [BEST["best3"]["k"], BEST["best2"]["v"], BEST["best2"]["k"], BEST["best3"]["v"]]
