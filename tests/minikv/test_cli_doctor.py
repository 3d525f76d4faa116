"""`minikv doctor` examines, recommends and measures."""

from __future__ import annotations

import json

import pytest

from engine import load_model
from engine.model.load import open_checkpoint
from tools.doctor import BOUND, CANDIDATES, Examination, measure
from tools.doctor_sources import Examined, read


def recommended(found: Examination) -> tuple[str, str]:
    return found.recommendation(BOUND).pair


def test_json_without_options_is_the_examination_of_the_weights(minikv, model):
    told = json.loads(minikv("doctor", "-m", model, "--json").out)
    found = Examination(Examined(open_checkpoint(model)).drawn(), scan=False)
    advice = told["recommendation"]
    assert (advice["ctk"], advice["ctv"]) == recommended(found)
    assert (told["source"], told["bound"]) == ("weights", BOUND)
    assert len(told["layers"]) == 2 and told["layers"][0]["k"]["scan"] is None
    by_name = {(c["name"], c["side"]): c for c in told["candidates"]}
    for c in found.candidates:
        assert by_name[c.name, c.side]["expected_kld"] == c.expected_kld
        assert by_name[c.name, c.side]["noise"] == list(c.noise)


def test_a_probe_examines_what_is_cached_of_the_text(minikv, model, text):
    command = ("doctor", "-m", model, "--backend", "reference", "--probe", "-f", text)
    told = json.loads(minikv(*command, "--json").out)
    layers = read(load_model(model, backend="reference"), text.read_text())
    found = Examination(layers, scan=True)
    assert told["source"] == "text"
    for layer, figures in zip(told["layers"], found.layers, strict=True):
        assert layer["k"]["outlier_ratio"] == figures.k.outlier_ratio
        assert layer["v"]["dispersion"] == figures.v.dispersion
        assert len(layer["k"]["spectrum"]) == 80
        assert [e["bits"] for e in layer["v"]["scan"]["nsep"]] == [2, 3, 4, 5, 6, 7, 8]
    out = minikv(*command).out
    assert "K spread" in out and "from a text" in out


def test_the_report_lists_layers_and_types_and_ends_with_the_recommendation(minikv, model):
    out = minikv("doctor", "-m", model).out
    rows = [line.split() for line in out.splitlines() if line]
    assert [row[0] for row in rows if row[0] in CANDIDATES] == list(CANDIDATES)
    assert [row[0] for row in rows if row[0] in ("0", "1")] == ["0", "1"]
    k, v = recommended(Examination(Examined(open_checkpoint(model)).drawn(), scan=False))
    assert f"recommended: -ctk {k} -ctv {v}, " in out


def test_verify_measures_the_recommended_pair_and_a_plain_one(minikv, model, text):
    result = minikv(
        "doctor", "-m", model, "--backend", "reference", "--verify", "-f", text, "--json"
    )
    told = json.loads(result.out)
    advice = told["recommendation"]
    pairs = [(m["ctk"], m["ctv"]) for m in told["verified"]]
    assert pairs == [(advice["ctk"], advice["ctv"]), ("q4_0", "q4_0")]
    reference = load_model(model, backend="reference")
    tokens = measure(reference, text.read_text(), ("q4_0", "q4_0"), 2)
    assert told["verified"][1]["mean_kld"] == pytest.approx(tokens.kld.mean())


def test_the_verdict_says_whether_the_bound_holds(minikv, model, text):
    command = ("doctor", "-m", model, "--backend", "reference", "--verify", "-f", text)
    assert "the recommendation holds: its bound is 0.02" in minikv(*command).out


def test_scan_prints_the_divergence_at_every_width(minikv, model, text):
    result = minikv("doctor", "-m", model, "--backend", "reference", "--scan", "-f", text)
    tail = result.out.splitlines()[-7:]
    assert [line.split()[0] for line in tail] == [f"int{bits}row" for bits in range(2, 9)]
    assert len(result.err.splitlines()) == 7


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-f", "book.txt"], "-f needs --probe, --verify or --scan"),
        (["--probe", "-f", "absent.txt"], "absent.txt: cannot be read"),
        (["--probe", "--backend", "abacus"], "abacus: not a backend"),
        (["-m", "nobody"], "'nobody': no such file or folder"),
    ],
)
def test_what_cannot_be_examined_is_refused_in_one_line(minikv, model, args, told):
    result = minikv("doctor", "-m", model, *args)
    assert (result.status, result.out) == (1, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_a_text_too_short_for_a_probe_is_refused(minikv, model, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("A fox.")
    result = minikv("doctor", "-m", model, "--backend", "reference", "--probe", "-f", short)
    assert (result.status, result.out) == (1, "")
    assert "tokens: a probe reads 128 at least" in result.err
