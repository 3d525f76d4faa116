"""The doctor examines what a session caches, and recommends by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import HEAD_DIM, KV_HEADS, tensors, write_tiny_model

from engine import Session, load_model
from engine.errors import InputError
from engine.kv.formats import FLOATS, kv_format
from engine.model.load import open_checkpoint
from tools import doctor
from tools.doctor import BOUND, CANDIDATES, Examination, measure, valley
from tools.doctor_sources import Examined, Layer, features, read

TEXT = "The quick brown fox jumps over the lazy dog. " * 10


def written(folder: Path, bias: np.ndarray | None) -> Path:
    weights = tensors(endless=False)
    if bias is not None:
        weights["blk.1.attn_k.bias"] = bias
    return write_tiny_model(folder / "tiny.gguf", arch="qwen2", weights=weights)


@pytest.fixture(scope="module")
def bias() -> np.ndarray:
    """Of head 1 alone, a hundred times what its keys vary by, in channels that hardly rotate."""
    values = np.zeros(KV_HEADS * HEAD_DIM, np.float32)
    values[HEAD_DIM + np.array([37, 38, 39, 77, 78, 79])] = 150.0
    return values


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("plain"), None)


@pytest.fixture(scope="module")
def biased(tmp_path_factory, bias) -> Path:
    return written(tmp_path_factory.mktemp("biased"), bias)


def test_norms_are_those_of_the_projections_and_of_each_heads_bias(biased, bias):
    weights, found = tensors(endless=False), Examined(open_checkpoint(biased)).weights()
    for index, layer in enumerate(found):
        k, v = (weights[f"blk.{index}.attn_{side}.weight"] for side in "kv")
        norms = [np.linalg.norm(w, kind) for w in (k, v) for kind in ("fro", 2)]
        seen = [layer.k_frobenius, layer.k_spectral, layer.v_frobenius, layer.v_spectral]
        assert seen == pytest.approx(norms, rel=1e-5)
    assert [layer.k_bias for layer in found] == [(), pytest.approx((0, np.linalg.norm(bias)))]


def test_a_text_is_read_into_exactly_what_a_session_caches(biased):
    model = load_model(biased, backend="reference")
    tokens = model.tokenizer.encode(TEXT, add_special=True)[:256]
    session = Session(model, n_ctx=256, ctk="f32", ctv="f32")
    session.extend(tokens)
    for layer, cached in zip(read(model, TEXT), session.cache.layers, strict=True):
        np.testing.assert_array_equal(layer.k, cached.k.decode(0))
        np.testing.assert_array_equal(layer.v, cached.v.decode(0))


def test_the_bias_is_the_part_of_the_keys_that_it_adds(plain, biased):
    with_bias = list(read(load_model(biased, backend="reference"), TEXT))
    without = list(read(load_model(plain, backend="reference"), TEXT))
    assert with_bias[0].k_bias is None and with_bias[1].k_bias is not None
    added = with_bias[1].k - without[1].k
    np.testing.assert_allclose(added, with_bias[1].k_bias, atol=1e-3)


def test_random_inputs_give_keys_of_the_models_own_scale_and_bias(plain, biased):
    drawn, again = (list(Examined(open_checkpoint(biased)).drawn()) for _ in range(2))
    np.testing.assert_array_equal(drawn[1].k, again[1].k)
    bare = list(Examined(open_checkpoint(plain)).drawn())
    np.testing.assert_allclose(drawn[1].k - bare[1].k, drawn[1].k_bias, atol=1e-3)
    # 0.1 standard normal weights times inputs of unit length per channel: sqrt(320) / 10
    assert bare[0].k.std() == pytest.approx(1.79, rel=0.05)


def test_a_bias_that_dwarfs_its_head_rules_out_types_that_keep_it_and_nothing_else(plain, biased):
    for path, loses in ((plain, set()), (biased, {"q6_0+nob", "q5_0+nob", "q4_0+nob"})):
        found = Examination(Examined(open_checkpoint(path)).drawn(), scan=False)
        assert {c.name for c in found.of("k") if c.loses} == loses
        assert not any(c.loses for c in found.of("v"))
        assert all(c.worst_layer == 1 for c in found.of("k") if c.loses)
        assert not found.recommendation(BOUND).k.name.endswith("+nob")


def test_the_recommendation_is_the_smallest_pair_within_the_bound(plain):
    found = Examination(Examined(open_checkpoint(plain)).drawn(), scan=False)
    size = {bound: _bits(found, bound) for bound in (1.0, 0.05, 0.01, 1e-4, 0.0)}
    assert list(size.values()) == sorted(size.values()) and len(set(size.values())) == 5
    for bound in (1.0, 0.05, 0.01, 1e-4):
        assert found.recommendation(bound).expected_kld <= bound
        for k in found.of("k"):
            for v in found.of("v"):
                small = k.expected_kld + v.expected_kld <= bound and not (k.loses or v.loses)
                assert not small or k.bits + v.bits >= size[bound]
    assert found.recommendation(0.0).pair == ("bf16", "bf16")


def _bits(found: Examination, bound: float) -> float:
    advice = found.recommendation(bound)
    return advice.k.bits + advice.v.bits


def test_a_candidate_is_what_a_session_stores(plain, biased):
    found = Examination(Examined(open_checkpoint(biased)).drawn(), scan=False)
    noise = {c.name: c.worst for c in found.of("k")}
    for c in found.of("k"):
        model = load_model(biased, backend="reference")
        layers = Session(model, n_ctx=8, ctk=c.name, ctv="f16").cache.layers
        lacks = [bool(layer.k.type.modifiers.bias) for layer in layers]
        assert lacks == [False, kv_format(c.name) not in FLOATS and not c.name.endswith("+nob")]
    assert noise["q4_0"] < 0.1 < noise["q4_0+nob"]
    bare = Examination(Examined(open_checkpoint(plain)).drawn(), scan=False)
    assert {c.name for c in bare.of("k")} == {c.name for c in found.of("v")} == set(CANDIDATES)


def test_keys_that_do_not_vary_are_refused():
    still = np.zeros((2, 256, 64), np.float32)
    found = Examination([Layer(0, still, still, None)], scan=False)
    assert found.recommendation(BOUND).expected_kld == 0


def test_a_text_shorter_than_a_page_is_refused(plain):
    with pytest.raises(InputError, match="the text has 5 tokens: a probe reads 128 at least"):
        list(read(load_model(plain, backend="reference"), "a fox"))


def test_measured_divergence_is_zero_for_the_reference_itself(plain):
    model = load_model(plain, backend="reference")
    same = measure(model, TEXT, ("f16", "f16"), 1)
    assert len(same) == 255 and not same.kld.any()


def test_the_bit_scan_measures_keys_alone(plain, monkeypatch):
    model, asked = load_model(plain, backend="reference"), []
    measured = measure(model, TEXT, ("q4_0", "f16"), 1)

    def told(*request):
        asked.append(request)
        return measured

    monkeypatch.setattr(doctor, "measure", told)
    assert list(valley(model, TEXT)) == [(bits, measured.kld.mean()) for bits in range(2, 9)]
    assert asked == [(model, TEXT, (f"int{bits}row", "f16"), 1) for bits in range(2, 9)]


def test_features_name_the_bias(plain, biased):
    for path, words in ((plain, "keys without a bias"), (biased, "keys with a bias")):
        examined = Examined(open_checkpoint(path))
        assert features(examined.spec, examined.weights()).endswith(words)


def test_a_damaged_file_is_refused_by_the_name_of_its_tensor(tmp_path):
    absent, endless = tensors(endless=False), tensors(endless=False)
    del absent["blk.1.attn_k.weight"]
    endless["blk.0.attn_v.weight"][3, 3] = np.inf
    for weights, told in (
        (absent, "blk.1.attn_k.weight is missing"),
        (endless, "blk.0.attn_v.weight has values that are not finite"),
    ):
        path = write_tiny_model(tmp_path / "damaged.gguf", weights=weights)
        with pytest.raises(InputError, match=told):
            Examined(open_checkpoint(path)).weights()
