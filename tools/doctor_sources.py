"""Where keys and values to examine come from: a model's weights alone, or a text it has read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint, Tensor
from engine.errors import InputError
from engine.kv.format import PAGE
from engine.model.archs import spec_of
from engine.model.load import Model
from engine.model.rope import rope_table
from engine.model.spec import AttentionSpec, ModelSpec
from engine.model.weights import bind
from engine.reference import ReferenceOps
from engine.session import Session

DRAWN = 2 * PAGE  # random inputs of a layer
READ = 4 * PAGE  # most tokens of a text


@dataclass(frozen=True)
class Layer:
    """Keys and values of one layer as the cache gets them, float32 [kv_heads, T, head_dim].

    `k_bias` is the part of the keys that is their rotated bias, None where a model has none.
    `first` is the position of the first token.
    """

    index: int
    k: np.ndarray
    v: np.ndarray
    k_bias: np.ndarray | None
    first: int = 0


@dataclass(frozen=True)
class LayerWeights:
    """The norms of a layer's projections: Frobenius and spectral, and of the keys' bias per head,
    empty without one."""

    k_frobenius: float
    k_spectral: float
    v_frobenius: float
    v_spectral: float
    k_bias: tuple[float, ...]


class _Undecoded(ReferenceOps):
    """Tensors stay in their file's bytes when they are bound."""

    def upload(self, tensor: Tensor) -> Any:
        return tensor


class Examined:
    """A model's layers, read from its checkpoint one at a time: nothing else is decoded.

    Raises InputError for a file whose tensors are not those of its model, or not finite.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.spec = checkpoint, spec_of(checkpoint)
        self._ops = ReferenceOps()
        self._layers = bind(self.spec, checkpoint, _Undecoded()).layers

    def weights(self) -> list[LayerWeights]:
        return [self._norms(index) for index in range(len(self.spec.layers))]

    def drawn(self) -> Iterator[Layer]:
        """What each layer makes of random inputs, normal and of the length its norm gives them.

        Biases, gains and rotations are the model's own, so what they do to the keys is seen; what
        stands out because of the inputs (massive activations, attention sinks) is not.
        """
        random = np.random.default_rng(0)
        for index, layer in enumerate(self.spec.layers):
            a, ops = layer.attention, self._ops
            noise = random.standard_normal((DRAWN, self.spec.n_embd), np.float32)
            gain = self._tensor(index, "attn_norm.weight")
            assert gain is not None
            x = ops.rms_norm(noise, gain, self.spec.norm_eps)
            k, v = (self._projected(index, side, x, a) for side in "kv")
            self._rotate_(k, a, 0)
            bias = self.bias(index, DRAWN, 0)
            yield Layer(index, _heads_first(k), _heads_first(v), bias)

    def bias(self, index: int, tokens: int, first: int) -> np.ndarray | None:
        """The rotated bias of a layer's keys at positions `first` and on, [kv_heads, tokens, D];
        None without one, or where keys are normalized behind it."""
        a = self.spec.layers[index].attention
        bias = self._tensor(index, "attn_k.bias")
        if bias is None or self._tensor(index, "attn_k_norm.weight") is not None:
            return None
        rows = np.tile(bias.reshape(1, a.kv_heads, a.head_dim), (tokens, 1, 1))
        self._rotate_(rows, a, first)
        return _heads_first(rows)

    def _projected(self, index: int, side: str, x: np.ndarray, a: AttentionSpec) -> np.ndarray:
        """x [T, n_embd] as keys or values [T, kv_heads, D], not rotated yet."""
        weight, bias, gain = (
            self._tensor(index, f"attn_{side}{name}")
            for name in (".weight", ".bias", "_norm.weight")
        )
        assert weight is not None
        y = self._ops.linear(weight, x, bias).reshape(len(x), a.kv_heads, a.head_dim)
        return y if gain is None else self._ops.rms_norm(y, gain, self.spec.norm_eps)

    def _rotate_(self, x: np.ndarray, a: AttentionSpec, first: int) -> None:
        tensor = self.checkpoint.tensors.get(a.rope.factors) if a.rope.factors else None
        factors = None if tensor is None else self._ops.upload(tensor)
        table = rope_table(a.rope, first + len(x), factors)
        self._ops.rope_(x, table, np.array([first]), a.rope.layout)

    def _norms(self, index: int) -> LayerWeights:
        a = self.spec.layers[index].attention
        k, v = (self._tensor(index, f"attn_{side}.weight") for side in "kv")
        bias = self._tensor(index, "attn_k.bias")
        per_head = [] if bias is None else np.linalg.norm(bias.reshape(a.kv_heads, -1), axis=1)
        return LayerWeights(*_norms(k), *_norms(v), tuple(float(norm) for norm in per_head))

    def _tensor(self, index: int, name: str) -> np.ndarray | None:
        tensor = self._layers[index].get(name)
        if tensor is None:
            return None
        values = self._ops.upload(tensor)
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.checkpoint.path}: tensor {tensor.name} has values that are not finite"
            )
        return values


def read(model: Model, text: str) -> Iterator[Layer]:
    """What each layer caches of the first tokens of `text`, up to 512 of them, exactly.

    Raises InputError for a text, or a context, of less than a page.
    """
    tokens = model.tokenizer.encode(text, add_special=True)[: min(READ, model.spec.n_ctx_train)]
    if len(tokens) < PAGE:
        raise InputError(f"the text has {len(tokens)} tokens: a probe reads {PAGE} at least")
    session = Session(model, n_ctx=len(tokens), ctk="f32", ctv="f32")
    session.extend(tokens)
    examined = Examined(model.checkpoint)
    for layer in session.cache.layers:
        # a sliding window may have freed the first pages
        first = max(layer.k.first_held(), layer.v.first_held())
        k, v = layer.k.decode(first), layer.v.decode(first)
        yield Layer(layer.index, k, v, examined.bias(layer.index, k.shape[1], first), first)


def features(spec: ModelSpec, weights: list[LayerWeights]) -> str:
    """What of a model decides how its cache packs, in a few words."""
    a = spec.layers[0].attention
    biased = f"keys {'with' if any(w.k_bias for w in weights) else 'without'} a bias"
    return f"{len(spec.layers)} layers, {a.kv_heads} KV heads of {a.head_dim}, {biased}"


def _norms(weight: np.ndarray | None) -> tuple[float, float]:
    """Frobenius and spectral norm of a matrix [N, K], the latter from its smaller Gram matrix."""
    assert weight is not None
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    spectral = np.sqrt(max(np.linalg.eigvalsh(gram.astype(np.float64))[-1], 0.0))
    return float(np.linalg.norm(weight)), float(spectral)


def _heads_first(x: np.ndarray) -> np.ndarray:
    """[T, heads, D] to contiguous [heads, T, D]."""
    return np.ascontiguousarray(x.swapaxes(0, 1))
