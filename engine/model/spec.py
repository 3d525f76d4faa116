"""What a decoder model is, as data.  Every axis on which families differ is a field here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions: angle(p, i) = p / scale / base^(2 i / dims) / factor[i].

    `factors` names a tensor of dims / 2 divisors, used when the file has it.  `layout` says which
    channels pair up: (i, i + dims / 2) for "neox", (2 i, 2 i + 1) for "norm".
    """

    dims: int
    base: float
    layout: Literal["norm", "neox"]
    scale: float = 1.0
    factors: str | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention.

    `scale` multiplies q k^T; `window` is the span in tokens, None for all; `softcap` 0 for none.
    Projection biases and per-head QK norms exist where the file has their tensors.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec
    scale: float
    window: int | None = None
    softcap: float = 0.0

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class FeedForwardSpec:
    """down(act(gate(x)) * up(x)) with `width` hidden features."""

    width: int
    act: Literal["silu", "gelu_tanh"] = "silu"


@dataclass(frozen=True)
class LayerSpec:
    attention: AttentionSpec
    feed_forward: FeedForwardSpec


@dataclass(frozen=True)
class ModelSpec:
    """A whole model.  Norms are RMS with `norm_eps`, before each block, and after it where the file
    has post-norm tensors; embeddings are multiplied by `embed_scale`; logits pass `logit_softcap`
    unless it is 0.  `n_ctx_train` is the context the model was trained for.
    """

    arch: str
    n_vocab: int
    n_embd: int
    n_ctx_train: int
    norm_eps: float
    layers: tuple[LayerSpec, ...]
    embed_scale: float = 1.0
    logit_softcap: float = 0.0
