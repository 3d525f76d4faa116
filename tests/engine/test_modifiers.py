"""+b and +h change how keys and values are stored, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import new_ops
from engine.checkpoint import Tensor
from engine.config import available_cores
from engine.errors import InputError
from engine.kv.cache import CacheType
from engine.kv.formats import kv_format
from engine.kv.modifiers import hadamard_matrix
from engine.model.load import Model, open_checkpoint
from engine.reference import dequantize
from engine.session import Session

ORACLES = Path(__file__).parents[1] / "fixtures" / "oracle"
PROMPT = np.random.default_rng(0).integers(0, 96, 200).tolist()
TOLERANCE = 5e-3  # of the largest logit, where a code flips; see test_session.py
# products of prompts may be of bfloat16 halves there, 2^-17 of each
ROUNDING = {"cpu": 1e-4, "reference": 1e-5}


@cache
def model(name: str = "qwen2", backend: str = "cpu", threads: int = 1, bias: float = 1.0) -> Model:
    """The checkpoint in float32, its key bias `bias` times as large."""
    found = open_checkpoint(ORACLES / name)
    tensors = {}
    for tensor in found.tensors.values():
        values = dequantize(tensor)
        if tensor.name.endswith("attn_k.bias"):
            values = values * np.float32(bias)
        data = values.view(np.uint8).reshape(1 if values.ndim == 1 else len(values), -1)
        tensors[tensor.name] = Tensor(tensor.name, "F32", tensor.shape, data)
    return Model(replace(found, tensors=tensors), new_ops(backend, threads))


def logits(ctk: str, ctv: str = "f32", **of_model: Any) -> np.ndarray:
    """After every token of the prompt but the first, some from a prompt and some one by one."""
    session = Session(model(**of_model), ctk=ctk, ctv=ctv)
    found = [rows for _, rows in session.score(PROMPT[:150])]
    found += [session.extend([token])[None] for token in PROMPT[150:]]
    return np.concatenate(found)


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("bias", [1.0, 30.0])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_leaving_the_bias_out_of_exact_keys_changes_nothing(backend: str, bias: float) -> None:
    options = {"backend": backend, "bias": bias}
    want = logits("f32", **options)
    assert error(logits("f32+b", **options), want) < ROUNDING[backend] * bias
    assert error(logits("f32", backend=backend, bias=0.0), want) > 1e-2


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_turning_exact_keys_and_values_changes_nothing(name: str, backend: str) -> None:
    options = {"name": name, "backend": backend}
    want = logits("f32", **options)
    assert error(logits("f32+h", **options), want) < ROUNDING[backend]
    assert error(logits("f32", "f32+h", **options), want) < ROUNDING[backend]


@pytest.mark.parametrize("kinds", [("q4_0+h+b", "q4_0+h"), ("int3nsep:32+b", "q8_0+h")])
def test_backends_agree(kinds: tuple[str, str]) -> None:
    got, want = logits(*kinds), logits(*kinds, backend="reference")
    assert error(got, want) < TOLERANCE


def test_keys_are_stored_without_their_bias_and_turned() -> None:
    exact, stored = (Session(model(), ctk=name, ctv=name) for name in ("f32", "f32+h"))
    for session in (exact, stored):
        session.extend(PROMPT[:9])
    layer, turned = exact.cache.layers[0], stored.cache.layers[0]
    matrix = hadamard_matrix(layer.k.head_dim)
    for side, other in ((layer.k, turned.k), (layer.v, turned.v)):
        np.testing.assert_allclose(other.decode(0), side.decode(0) @ matrix, atol=1e-5)
    without = Session(model(), ctk="f32+b", ctv="f32")
    without.extend(PROMPT[:9])
    bare = Session(model(bias=0.0), ctk="f32", ctv="f32")
    bare.extend(PROMPT[:9])
    got, want = (session.cache.layers[0].k.decode(0) for session in (without, bare))
    np.testing.assert_array_equal(got, want)
    assert np.abs(got - layer.k.decode(0)).max() > 1e-2


def test_quantized_keys_leave_a_bias_out_unless_told_otherwise() -> None:
    def name(ctk: str, of: str = "qwen2") -> str:
        return Session(model(of), ctk=ctk, ctv="q4_0").cache.layers[0].k.type.name

    assert [name("q4_0"), name("int3nsep:64")] == ["q4_0+b", "int3nsep:64+b"]
    assert [name("q4_0+nob"), name("q4_0+h")] == ["q4_0+nob", "q4_0+h+b"]
    assert [name("f32"), name("bf16"), name("bf16+b")] == ["f32", "bf16", "bf16+b"]
    assert [name("q4_0", "llama"), name("q4_0", "qwen3")] == ["q4_0", "q4_0"]
    # a bias thirty times as large drowns the rest
    want = logits("f32", bias=30.0)
    without, whole = (error(logits(kind, bias=30.0), want) for kind in ("q8_0", "q8_0+nob"))
    assert 5 * without < whole


@pytest.mark.parametrize("kind", ["q4_0+h+b", "int3nsep:32+b", "bf16+b"])
def test_any_chunking_and_any_way_back_give_the_same_logits(kind: str) -> None:
    whole = Session(model(), ctk=kind, ctv="q8_0+h").extend(PROMPT)
    parts = Session(model(), ctk=kind, ctv="q8_0+h")
    for start, stop in ((0, 3), (3, 34), (34, 130), (130, 131), (131, 199), (199, 200)):
        found = parts.extend(PROMPT[start:stop])
    assert error(found, whole) < TOLERANCE
    for tokens in ([*PROMPT[:70], *PROMPT[:40]], PROMPT):
        found = parts.extend(parts.rewind(tokens))
    assert error(found, whole) < TOLERANCE


def test_the_number_of_threads_changes_not_a_bit() -> None:
    counts = (1, min(2, available_cores()))
    one, two = (logits("q4_0+h+b", "int3nsep:32+h", threads=n) for n in counts)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("ctk", "ctv", "named"),
    [
        ("q4_0+x", "f32", "q4_0+x: modifiers of q4_0 are"),
        ("q4_0+", "f32", "q4_0+: modifiers"),
        ("q4_0+b+nob", "f32", "modifiers"),
        ("q4_0+h+h", "f32", "modifiers"),
        ("q3+h", "f32", "q3+h: not a KV cache type"),
        ("int3nsep:33+b", "f32", "int3nsep:33+b: a page length"),
        ("f32", "q4_0+b", "q4_0+b: .* for keys"),
    ],
)
def test_names_that_say_nothing_are_refused(ctk: str, ctv: str, named: str) -> None:
    with pytest.raises(InputError, match=named.replace("+", "[+]")):
        Session(model(), ctk=ctk, ctv=ctv)


def test_a_model_without_a_key_bias_refuses_to_leave_it_out() -> None:
    for name in ("llama", "qwen3"):
        with pytest.raises(InputError, match="keys have no bias"):
            Session(model(name), ctk="q4_0+b", ctv="f32")
        Session(model(name), ctk="q4_0+nob", ctv="f32")


def test_bad_pairs_are_cautioned_against() -> None:
    def cautions(ctk: str, ctv: str, name: str = "qwen2") -> list[str]:
        types = CacheType.of(kv_format(ctk)), CacheType.of(kv_format(ctv))
        return model(name).cautions(types)

    assert cautions("q4_0+h", "q4_0+h") == cautions("int4nsep", "kivi2+h") == []
    assert cautions("q4_0+h+nob", "q4_0", "llama") == []
    (line,) = cautions("int3nsep+h", "f32")
    assert line.startswith("int3nsep+h: ")
    (line,) = cautions("f32", "int3wf+h")
    assert line.startswith("int3wf+h: ")
    (line,) = cautions("q4_0+h+nob", "f32")
    assert "bias" in line
