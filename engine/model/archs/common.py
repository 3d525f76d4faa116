"""The metadata that every decoder family shares, read once and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from engine.checkpoint import Checkpoint, Metadata
from engine.errors import InputError
from engine.model.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, RopeSpec

MAX_LAYERS = 4096  # far above any model: a damaged header must not make us build a million specs


@dataclass(frozen=True)
class Keys:
    """Metadata of one architecture: `keys.int("block_count")` reads `llama.block_count`."""

    metadata: Metadata
    arch: str
    source: str

    def int(self, key: str, *default: Any) -> int:
        return self.metadata.int(f"{self.arch}.{key}", *default)

    def float(self, key: str, *default: Any) -> float:
        return self.metadata.float(f"{self.arch}.{key}", *default)

    def str(self, key: str, *default: Any) -> str:
        return self.metadata.str(f"{self.arch}.{key}", *default)

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.arch}.{key}")

    def positive(self, key: str, *default: Any, most: int = 1 << 24) -> int:
        """An integer that counts something."""
        value = self.int(key, *default)
        if not 0 < value <= most:
            raise self.error(key, value, f"from 1 to {most}")
        return value

    def positive_float(self, key: str, *default: Any) -> float:
        value = self.float(key, *default)
        if not (math.isfinite(value) and value > 0):
            raise self.error(key, value, "a positive number")
        return value

    def error(self, key: str, value: Any, allowed: str) -> InputError:
        return InputError(f"{self.source}: {self.arch}.{key} is {value!r}, allowed: {allowed}")


def keys_of(checkpoint: Checkpoint) -> Keys:
    metadata = checkpoint.metadata
    return Keys(metadata, metadata.str("general.architecture"), str(checkpoint.path))


def rope(
    keys: Keys, head_dim: int, layout: Literal["norm", "neox"], base: float, *, scaled: bool = True
) -> RopeSpec:
    """Rotary positions as the file scales them; `layout` holds unless the file names its own."""
    dims = keys.positive("rope.dimension_count", head_dim)
    if dims > head_dim or dims % 2:
        raise keys.error("rope.dimension_count", dims, f"an even number up to {head_dim}")
    named = keys.str("rope.layout", layout)
    if named not in ("norm", "neox"):
        raise keys.error("rope.layout", named, "norm, neox")
    scaling = keys.str("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise keys.error("rope.scaling.type", scaling, "none, linear")
    scale = 1.0
    if scaled and scaling == "linear":
        scale = keys.positive_float("rope.scaling.factor")
    return RopeSpec(dims, base, named, scale, "rope_freqs.weight" if scaled else None)


def attention(
    keys: Keys,
    layout: Literal["norm", "neox"],
    *,
    base: float | None = None,
    window: int | None = None,
    scaled_rope: bool = True,
) -> AttentionSpec:
    """Grouped-query attention by the common keys; `base` overrides the file's rope base."""
    heads = keys.positive("attention.head_count", most=4096)
    kv_heads = keys.positive("attention.head_count_kv", heads, most=4096)
    if heads % kv_heads:
        raise keys.error("attention.head_count_kv", kv_heads, f"a divisor of {heads}")
    n_embd = keys.positive("embedding_length")
    head_dim = keys.positive("attention.key_length", n_embd // heads, most=4096)
    value_dim = keys.positive("attention.value_length", head_dim, most=4096)
    if value_dim != head_dim or head_dim % 8:
        allowed = "a multiple of 8, equal for keys and values"
        raise keys.error("attention.key_length", (head_dim, value_dim), allowed)
    if base is None:
        base = keys.positive_float("rope.freq_base", 10000.0)
    return AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope(keys, head_dim, layout, base, scaled=scaled_rope),
        scale=keys.positive_float("attention.scale", head_dim**-0.5),
        window=window,
    )


def window_of(keys: Keys) -> int | None:
    """The file's sliding window in tokens, None without one."""
    window = keys.int("attention.sliding_window", 0)
    if window < 0:
        raise keys.error("attention.sliding_window", window, "0 or more")
    return window or None


def n_layers(keys: Keys) -> int:
    return keys.positive("block_count", most=MAX_LAYERS)


def feed_forward(keys: Keys, act: Literal["silu", "gelu_tanh"] = "silu") -> FeedForwardSpec:
    return FeedForwardSpec(keys.positive("feed_forward_length"), act)


def decoder(
    checkpoint: Checkpoint,
    keys: Keys,
    layers: tuple[LayerSpec, ...],
    *,
    embed_scale: float = 1.0,
) -> ModelSpec:
    """The spec around `layers`.  The vocabulary's size is that of the embedding matrix."""
    embedding = checkpoint.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{checkpoint.path}: tensor token_embd.weight is missing")
    return ModelSpec(
        arch=keys.arch,
        n_vocab=embedding.shape[0],
        n_embd=keys.positive("embedding_length"),
        n_ctx_train=keys.positive("context_length", most=1 << 30),
        norm_eps=keys.positive_float("attention.layer_norm_rms_epsilon"),
        layers=layers,
        embed_scale=embed_scale,
    )
