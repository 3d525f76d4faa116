"""KL divergence of one cache from another is that of their logits, token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from letters import TEXT, Letters, letters_model

from engine import InputError, Session, load_model
from engine.kv.formats import KV_FORMATS
from engine.model.load import Model
from tools.kld import Divergence, Tokens
from tools.kld_report import Statistics, by_position, report, running_line
from tools.ppl import Perplexity
from tools.windows import Settings


@pytest.fixture(scope="module")
def model() -> Model:
    return letters_model()


def measured(model: Model, settings: Settings, base: tuple[str, str]) -> Tokens:
    *_, tokens = Divergence(model, TEXT, settings, base)
    return tokens


def log_softmax(model: Model, window: list[int], kind: str) -> np.ndarray:
    session = Session(model, n_ctx=len(window), ctk=kind, ctv=kind)
    logits = np.concatenate([rows for _, rows in session.score(window)]).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize(("protocol", "first"), [("llama", 33), ("decode", 1)])
def test_every_measure_is_that_of_the_two_distributions(
    model: Model, protocol: str, first: int
) -> None:
    tokens = measured(model, Settings(protocol, 64, 2, "q4_0", "q4_0"), ("f16", "f16"))
    ids = Letters().encode(TEXT, add_special=True)
    expected = []
    for start in (0, 64):
        window = [Letters.bos, *ids[start + 1 : start + 64]]
        p, q = (log_softmax(model, window, kind) for kind in ("f16", "q4_0"))
        for t in range(first, 64):
            kld = np.sum(np.exp(p[t - 1]) * (p[t - 1] - q[t - 1]))
            target = window[t]
            same = p[t - 1].argmax() == q[t - 1].argmax()
            expected.append((t, -q[t - 1, target], -p[t - 1, target], kld, same))
    columns = np.array(expected, np.float64).T
    names = ("position", "nll", "nll_base", "kld", "same_top")
    for name, column in zip(names, columns, strict=True):
        np.testing.assert_allclose(getattr(tokens, name), column, rtol=1e-6, atol=1e-6)
    assert tokens.kld.min() > 0
    np.testing.assert_allclose(tokens.p_diff, np.exp(-columns[1]) - np.exp(-columns[2]), atol=1e-6)


@pytest.mark.parametrize("kind", list(KV_FORMATS))
def test_a_type_does_not_diverge_from_itself(model: Model, kind: str) -> None:
    s = Statistics(measured(model, Settings("decode", 160, 1, kind, kind), (kind, kind)))
    assert (s.kld(0), s.kld(100), s.mean_kld.value, s.mean_kld.error) == (0, 0, 0, 0)
    assert (s.difference.value, s.log_ratio.value, s.rms_p_diff.value) == (0, 0, 0)
    assert (s.same_top.value, s.correlation) == (1, 1)
    assert "nan" not in report(s)


def test_pa_freezes_the_candidates_first_half_and_the_references(model: Model) -> None:
    tokens = measured(model, Settings("pa", 64, 1, "int3nsep", "f32"), ("f32", "f32"))
    assert tokens.position.tolist() == list(range(32, 64))
    # the boundary token is predicted before anything is frozen
    assert tokens.kld[0] == 0
    assert tokens.kld[1:].min() > 0


def test_both_perplexities_are_those_of_minikv_ppl(model: Model) -> None:
    s = Statistics(measured(model, Settings("llama", 64, 2, "q8_0", "q4_0"), ("f16", "bf16")))
    for mine, types in ((s.ppl, ("q8_0", "q4_0")), (s.ppl_base, ("f16", "bf16"))):
        *_, score = Perplexity(model, TEXT, Settings("llama", 64, 2, *types))
        assert mine.value == pytest.approx(score.ppl, rel=1e-12)
        assert mine.error == pytest.approx(score.ppl_stderr, rel=1e-9)


def test_a_broken_quantizer_is_seen(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packed bytes of each page change places: the tokens that read it differ."""
    settings = Settings("decode", 160, 1, "int3nsep:32", "int3nsep:32")
    sound = measured(model, settings, ("f16", "f16"))
    kind = type(KV_FORMATS["int3nsep"])
    encode = kind.encode

    def swapped(self, x, side, weights=None):
        page = encode(self, x, side, weights)
        page[..., [0, 1]] = page[..., [1, 0]]
        return page

    monkeypatch.setattr(kind, "encode", swapped)
    monkeypatch.setattr("engine.cpu.packable", lambda kind: False)  # let it be the one that packs
    broken = measured(model, settings, ("f16", "f16"))
    assert (broken.kld[:31] == sound.kld[:31]).all()  # before the first page is packed
    assert np.abs(broken.kld[33:] - sound.kld[33:]).min() > 0


def tokens_of(nll: list[float], base: list[float]) -> Tokens:
    x, y = np.array(nll), np.array(base)
    return Tokens(np.arange(len(x)) * 1.0, x, y, np.abs(x - y), np.ones(len(x)))


def test_errors_are_paired_as_llama_perplexity_pairs_them() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.1, 1.9, 3.5, 5.0])
    s = Statistics(tokens_of([*x], [*y]))
    n = len(x)
    se = [np.sqrt(v.var() / (n - 1)) for v in (x, y)]
    cov = ((x * y).mean() - x.mean() * y.mean()) / (n - 1)
    ppl, base = np.exp(x.mean()), np.exp(y.mean())
    ratio = np.sqrt(se[0] ** 2 + se[1] ** 2 - 2 * cov)
    both = (ppl * se[0]) ** 2 + (base * se[1]) ** 2 - 2 * ppl * base * cov
    assert s.ppl.error == pytest.approx(ppl * se[0])
    assert s.correlation == pytest.approx(cov / (se[0] * se[1]))
    assert s.log_ratio.error == pytest.approx(ratio)
    assert s.ratio.error == pytest.approx(ratio * ppl / base)
    assert s.difference.error == pytest.approx(np.sqrt(both))


# `llama-perplexity --kl-divergence`, commit of 2026-10-01: the text in front of each colon
LLAMA_CPP = """\
====== Perplexity statistics ======
Mean PPL(Q)                   :
Mean PPL(base)                :
Cor(ln(PPL(Q)), ln(PPL(base))):
Mean ln(PPL(Q)/PPL(base))     :
Mean PPL(Q)/PPL(base)         :
Mean PPL(Q)-PPL(base)         :

====== KL divergence statistics ======
Mean    KLD:
Maximum KLD:
99.9%   KLD:
99.0%   KLD:
95.0%   KLD:
90.0%   KLD:
Median  KLD:
10.0%   KLD:
 5.0%   KLD:
 1.0%   KLD:
 0.1%   KLD:
Minimum KLD:

====== Token probability statistics ======
Mean    Δp:
Maximum Δp:
99.9%   Δp:
99.0%   Δp:
95.0%   Δp:
90.0%   Δp:
75.0%   Δp:
Median  Δp:
25.0%   Δp:
10.0%   Δp:
 5.0%   Δp:
 1.0%   Δp:
 0.1%   Δp:
Minimum Δp:
RMS Δp    :
Same top p:
""".splitlines()


def test_the_report_has_llama_perplexitys_names_in_its_order() -> None:
    lines = report(Statistics(tokens_of([1.0, 2.0, 3.0], [1.5, 2.5, 2.0]))).splitlines()
    heads = [line[: line.rfind(":") + 1] if ": " in line else line for line in lines]
    assert heads == LLAMA_CPP


def test_running_lines_have_five_estimates() -> None:
    line = running_line(7, Statistics(tokens_of([1.0, 2.0, 3.0], [1.5, 2.5, 2.0])))
    assert line.startswith("   7 ") and line.count("±") == 5


def test_depths_cover_every_scored_token_once() -> None:
    tokens = replace(tokens_of([1.0] * 31, [2.0] * 31), position=np.arange(33, 64) * 1.0)
    depths = by_position(tokens, 64)
    assert [(d.start, d.end) for d in depths] == [(32, 38), (38, 44), (44, 51), (51, 57), (57, 64)]
    assert sum(d.tokens for d in depths) == 31
    assert all(d.kld.value == 1 and d.kld.error == 0 for d in depths)


def test_an_unknown_reference_type_is_refused_by_name(model: Model) -> None:
    with pytest.raises(InputError, match="q3: not a KV cache type"):
        Divergence(model, TEXT, Settings("llama", 64), ("f16", "q3"))


@pytest.mark.real
def test_smollm2_diverges_more_with_fewer_bits(real_model, wikitext: Path) -> None:
    model = load_model(real_model("smollm2-135m"))
    text = wikitext.read_text(encoding="utf-8")[:4000]
    fine, coarse = (
        Statistics(list(Divergence(model, text, Settings("llama", 256, 1, kind, kind)))[-1])
        for kind in ("q8_0", "q4_0")
    )
    assert 0 < 10 * fine.mean_kld.value < coarse.mean_kld.value
