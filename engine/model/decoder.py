"""The decoder: token ids and caches in, hidden states and logits out.  One loop for all
families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Self

import numpy as np

from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.kv.budget import allot
from engine.kv.cache import CacheType, KVCache, LayerCache
from engine.kv.formats import FLOATS
from engine.kv.policy import Types, by_layer
from engine.model.rope import rope_table
from engine.model.spec import AttentionSpec, LayerSpec, ModelSpec, RopeSpec
from engine.model.weights import Weights, bind
from engine.ops import Array, KeyBias, Ops, Weight

CHUNK = 512  # tokens per forward pass: large enough to be a matrix product, small in memory
ROPE_POSITIONS = 2048  # in the first rotation tables


class Decoder:
    """A model on one backend.  Frozen after construction: sequences live in their KVCache."""

    def __init__(self, spec: ModelSpec, checkpoint: Checkpoint, ops: Ops) -> None:
        self.spec, self.checkpoint, self.ops = spec, checkpoint, ops
        self.weights: Weights = bind(spec, checkpoint, ops)
        self._rope_factors = {
            rope: _rope_factors(checkpoint, rope)
            for rope in {layer.attention.rope for layer in spec.layers}
        }
        self._rope_tables: dict[RopeSpec, Array] = {}
        self._rope_positions = 0

    def new_cache(
        self, types: Types | Sequence[Types], n_ctx: int, budget: int | None = None
    ) -> KVCache:
        """An empty cache for one sequence of at most `n_ctx` tokens, keys and values stored as
        `types`, one pair or a pair per layer, in at most `budget` bytes.  Raises InputError for a
        type that this backend cannot attend to, or that a model without such a bias cannot have,
        and for a budget too small."""
        pairs = by_layer(types, len(self.spec.layers))
        for pair in dict.fromkeys(pairs):
            self._check_types(*pair)
        position = np.zeros(1, np.int64)
        layers = []
        for spec, weights, (k, v) in zip(self.spec.layers, self.weights.layers, pairs, strict=True):
            a, of_layer = spec.attention, (_stored(k, weights), v)
            shape = a.kv_heads, a.head_dim, n_ctx, a.window
            layers.append(LayerCache(of_layer, *shape, len(layers), position))
        if budget is None:
            return KVCache(layers, n_ctx)
        return KVCache(layers, n_ctx, budget, allot(layers, budget, n_ctx, CHUNK))

    def _check_types(self, k: CacheType, v: CacheType) -> None:
        for kind in (k, v):
            if not self.ops.supports(kind):
                raise InputError(f"{kind.name}: not supported by the {self.ops.name} backend")
        if v.modifiers.bias is not None:
            raise InputError(f"{v.name}: +b and +nob are for keys; values keep their bias")
        if k.modifiers.bias and not any(map(_separable, self.weights.layers)):
            raise InputError(f"{k.name}: this model's keys have no bias that could be left out")

    def split(self, parts: int) -> list[Self]:
        """At most `parts` decoders over these weights that can work at the same time."""
        found = []
        for ops in self.ops.split(parts):
            part = copy(self)
            part.ops = ops
            found.append(part)
        return found

    def cautions(self, types: Types) -> list[str]:
        """What is known to make `types` a bad choice for this model, a line each."""
        k, found = types[0], []
        for kind, side in zip(types, ("k", "v"), strict=True):
            if kind.modifiers.rotated and kind.format.by_channel(side):
                found.append(
                    f"{kind.name}: +h mixes the channels whose ranges {kind.format.name} stores; "
                    "it is meant for types that scale single tokens"
                )
        biased = any(
            _separable(weights) and not _stored(k, weights).modifiers.bias
            for weights in self.weights.layers
        )
        if k.modifiers.rotated and biased and k.format not in FLOATS:
            found.append(
                f"{k.name}: +h spreads this model's key bias over all channels; leave out +nob"
            )
        return found

    def forward(self, ids: np.ndarray, cache: KVCache) -> Array:
        """Append the tokens ids int32 [T] to the cache; their last hidden states [T, n_embd]."""
        cache.check_room(len(ids))
        self._reach(cache.n + len(ids))
        x = self._layers(ids, cache)
        self.ops.finish()  # ops read the position when they run
        self._advance(cache, len(ids))
        return x

    def step(self, token: int, cache: KVCache) -> np.ndarray:
        """Append one token; the logits float32 [n_vocab] that follow it.

        The ops of a step are the same for every token: the backend may record them once.
        """
        cache.check_room(1)
        self._reach(cache.n + 1)
        cache.open_pages(1)
        recorded = self._rope_positions, cache.open_sinks
        if recorded not in cache.recorded:
            ids = np.zeros(1, np.int32)
            body = self.ops.recorded(lambda: self.logits(self._layers(ids, cache)))
            cache.recorded = {recorded: (ids, body)}  # older tables are gone
        ids, run = cache.recorded[recorded]
        ids[0] = token
        logits = run()[0]
        if not cache.count_one():
            self._advance(cache, 1)
        return logits

    def _layers(self, ids: np.ndarray, cache: KVCache) -> Array:
        ops, spec = self.ops, self.spec
        x = ops.embed(self.weights.model["token_embd.weight"], ids)
        if spec.embed_scale != 1.0:
            ops.scale_(x, spec.embed_scale)
        for layer, weights, kv in zip(spec.layers, self.weights.layers, cache.layers, strict=True):
            self._attention(layer.attention, weights, kv, x)
            self._feed_forward(layer, weights, x)
            if len(ids) > 1:
                ops.submit()
        return x

    def _advance(self, cache: KVCache, tokens: int) -> None:
        """Count the tokens that all layers have appended, and pack the pages they filled."""
        cache.advance(tokens)
        for kv in cache.layers:
            if kv.full():
                self.ops.seal(kv)
        self.ops.finish()

    def logits(self, hidden: Array) -> Array:
        """float32 [T, n_vocab] from hidden states [T, n_embd]."""
        weights = self.weights.model
        x = self._norm(hidden, weights["output_norm.weight"])
        logits = self.ops.linear(weights.get("output.weight", weights["token_embd.weight"]), x)
        if self.spec.logit_softcap:
            self.ops.softcap_(logits, self.spec.logit_softcap)
        return logits

    def _reach(self, positions: int) -> None:
        """Let the rotation tables cover `positions`: they grow with use, not with the context."""
        if positions <= self._rope_positions:
            return
        reach = max(positions, 2 * self._rope_positions, ROPE_POSITIONS)
        self._rope_tables = {
            rope: self.ops.asarray(rope_table(rope, reach, factors))
            for rope, factors in self._rope_factors.items()
        }
        self._rope_positions = reach  # last: an interruption leaves the tables that there were

    def _norm(self, x: Array, weight: Weight) -> Array:
        return self.ops.rms_norm(x, weight, self.spec.norm_eps)

    def _residual(self, x: Array, y: Array, post_norm: Weight | None) -> None:
        self.ops.add_(x, y if post_norm is None else self._norm(y, post_norm))

    def _attention(
        self, a: AttentionSpec, w: Mapping[str, Weight], kv: LayerCache, x: Array
    ) -> None:
        """x += attention(norm(x)), its keys and values appended to `kv`."""
        ops, tokens = self.ops, x.shape[0]
        of_keys, of_values = kv.k.type.modifiers, kv.v.type.modifiers
        k_bias, bias = w.get("attn_k.bias"), None
        if of_keys.bias:
            k_bias, bias = None, k_bias
        q, k, v = ops.linears(
            [w["attn_q.weight"], w["attn_k.weight"], w["attn_v.weight"]],
            self._norm(x, w["attn_norm.weight"]),
            [w.get("attn_q.bias"), k_bias, w.get("attn_v.bias")],
        )
        q = q.reshape(tokens, a.heads, a.head_dim)
        k = k.reshape(tokens, a.kv_heads, a.head_dim)
        v = v.reshape(tokens, a.kv_heads, a.head_dim)
        if "attn_q_norm.weight" in w:
            q = self._norm(q, w["attn_q_norm.weight"])
        if "attn_k_norm.weight" in w:
            k = self._norm(k, w["attn_k_norm.weight"])
        table = self._rope_tables[a.rope]
        ops.rope_(q, table, kv.count.position, a.rope.layout)
        ops.rope_(k, table, kv.count.position, a.rope.layout)
        plain = q
        if of_keys.rotated:
            q, k = ops.hadamard(q), ops.hadamard(k)
        if of_values.rotated:
            v = ops.hadamard(v)
        lacking = None
        if bias is not None:
            by_head = bias.reshape(a.kv_heads, a.head_dim)
            lacking = KeyBias(plain, by_head, table, a.rope.layout, of_keys.rotated)
        mixed = ops.extend(kv, q, k, v, a.scale, a.softcap, lacking)
        if of_values.rotated:
            mixed = ops.hadamard(mixed)
        mixed = mixed.reshape(tokens, a.heads * a.head_dim)
        y = ops.linear(w["attn_output.weight"], mixed, w.get("attn_output.bias"))
        self._residual(x, y, w.get("post_attention_norm.weight"))

    def _feed_forward(self, layer: LayerSpec, w: Mapping[str, Weight], x: Array) -> None:
        """x += down(act(gate(norm(x))) * up(norm(x)))."""
        gate, up = self.ops.linears(
            [w["ffn_gate.weight"], w["ffn_up.weight"]],
            self._norm(x, w["ffn_norm.weight"]),
            [None, None],
        )
        hidden = self.ops.glu(gate, up, layer.feed_forward.act)
        y = self.ops.linear(w["ffn_down.weight"], hidden)
        self._residual(x, y, w.get("post_ffw_norm.weight"))


def _separable(weights: Mapping[str, Weight]) -> bool:
    """Whether a layer's keys are a product plus a bias, turned: a norm in between mixes the two."""
    return "attn_k.bias" in weights and "attn_k_norm.weight" not in weights


def _stored(kind: CacheType, weights: Mapping[str, Weight]) -> CacheType:
    """How a layer's keys are stored, its default about their bias settled.

    Leaving the bias out costs a second product per score: float types store it as well as the rest.
    """
    asked = kind.modifiers.bias
    bias = None
    if _separable(weights):
        quantized = any(f not in FLOATS for f in (kind.format, kind.small) if f is not None)
        bias = True if asked is None and quantized else asked
    return replace(kind, modifiers=replace(kind.modifiers, bias=bias))


def _rope_factors(checkpoint: Checkpoint, rope: RopeSpec) -> np.ndarray | None:
    """The file's frequency divisors float32 [dims / 2], None without them."""
    tensor = checkpoint.tensors.get(rope.factors) if rope.factors else None
    if tensor is None:
        return None
    if tensor.type != "F32" or tensor.shape != (rope.dims // 2,):
        raise InputError(
            f"{checkpoint.path}: tensor {tensor.name} is {tensor.type} {tensor.shape}, "
            f"expected F32 ({rope.dims // 2},)"
        )
    return np.frombuffer(tensor.data.tobytes(), "<f4")
