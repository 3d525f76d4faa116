"""The op protocol: what a backend must do.

A backend may run ops when they are called or collect them; `to_host` and `recorded` give results.

Arrays are the backend's own and float32 [tokens, features] (heads split: [tokens, heads,
head_dim]);
weights are whatever `upload` returned.  Names ending in `_` work in place.  The reference backend
is the plain NumPy meaning of every op; composites have default bodies that a backend may fuse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.checkpoint import Tensor
from engine.errors import InputError
from engine.kv.cache import CacheType, LayerCache, SideCache

Array = Any
Weight = Any


@dataclass(frozen=True)
class KeyBias:
    """What keys that are stored without their bias lack in their scores: q . RoPE(bias, t).

    `queries` [T, heads, D] after their rotation by position and no other, `bias` [kv_heads, D],
    `table` and `layout` as `rope_` takes them; `rotated`: keys and their queries are, by the
    Hadamard matrix, after their rotation by position.
    """

    queries: Array
    bias: Array
    table: Array
    layout: str
    rotated: bool

    def of(self, tokens: slice) -> KeyBias:
        """The same for some of the tokens."""
        return replace(self, queries=self.queries[tokens])


class Ops(ABC):
    """One device."""

    name: str

    @abstractmethod
    def upload(self, tensor: Tensor) -> Weight:
        """The backend's form of a tensor: matrices stay quantized, vectors become float32.

        Raises InputError for a type that cannot be decoded.
        """

    def table(self, tensor: Tensor) -> Weight:
        """The form of a matrix of which `embed` takes rows and which no `linear` multiplies."""
        return self.upload(tensor)

    def split(self, parts: int) -> list[Ops]:
        """At most `parts` backends, of which each can work for a thread of its own at the same
        time, on what this one has uploaded; together they have its cores."""
        return [self]

    @abstractmethod
    def asarray(self, x: np.ndarray) -> Array:
        """Host array to device array."""

    @abstractmethod
    def to_host(self, x: Array) -> np.ndarray:
        """Device array to host array."""

    @abstractmethod
    def concatenate(self, parts: list[Array]) -> Array:
        """One array of `parts` joined along their first axis."""

    @abstractmethod
    def supports(self, kind: CacheType) -> bool:
        """Whether pages of this type can be written and attended to; no fallback exists."""

    @abstractmethod
    def embed(self, weight: Weight, ids: np.ndarray) -> Array:
        """Rows ids int32 [T] of the matrix as float32 [T, E]."""

    @abstractmethod
    def linear(self, weight: Weight, x: Array, bias: Weight | None = None) -> Array:
        """y [T, N] = x [T, K] weight [N, K]^T + bias [N]."""

    @abstractmethod
    def rms_norm(self, x: Array, weight: Weight, eps: float) -> Array:
        """x / rms(x) * weight over the last axis of x [..., E]."""

    @abstractmethod
    def rope_(self, x: Array, table: Array, position: np.ndarray, layout: str) -> None:
        """Rotate x [T, heads, D] by rows p..p+T of table [positions, dims / 2, 2] (cos, sin); p is
        what `position` int64 [1] holds when the op runs.

        Pairs are (i, i + dims / 2) for layout "neox" and (2 i, 2 i + 1) for "norm"; channels from
        `dims` on stay.
        """

    @abstractmethod
    def hadamard(self, x: Array) -> Array:
        """x [..., D] times the orthonormal `hadamard_matrix` of D, which is its own inverse."""

    @abstractmethod
    def glu(self, gate: Array, up: Array, act: str) -> Array:
        """act(gate) * up, act "silu" or "gelu_tanh"."""

    @abstractmethod
    def add_(self, x: Array, y: Array) -> None:
        """x += y."""

    @abstractmethod
    def scale_(self, x: Array, factor: float) -> None:
        """x *= factor."""

    @abstractmethod
    def softcap_(self, x: Array, cap: float) -> None:
        """x = cap tanh(x / cap)."""

    @abstractmethod
    def log_masses(self, logits: Array) -> np.ndarray:
        """float64 [T], on the host: ln sum exp of the rows of logits [T, n_vocab], so that the log
        probability of a token is its logit minus the mass; NaN for rows that are not finite."""

    @abstractmethod
    def divergences(self, base: Array, logits: Array) -> np.ndarray:
        """float64 [T, 3], on the host: the KL divergence in nats of what logits [T, n_vocab]
        predict from what `base` does, exactly 0 for equal rows, and the log masses of both."""

    @abstractmethod
    def append(self, layer: LayerCache, k: Array, v: Array) -> None:
        """Store k and v [T, kv_heads, D] as the layer's next tokens, which fit the open pages.

        Raises InputError naming layer and position, here or when the op runs, if a value is not
        finite or its stored form would not be.
        """

    @abstractmethod
    def attend(
        self,
        q: Array,
        layer: LayerCache,
        scale: float,
        softcap: float,
        bias: KeyBias | None = None,
    ) -> Array:
        """Causal attention of q [T, heads, D], the last T tokens of the layer, to its pages.

        softmax(softcap(q k^T scale)) v within the layer's window; `softcap` 0 means none; `bias`
        is added to q k^T.  Returns [T, heads, D].  Keys of a weighted format note the queries in
        `layer.k.queries`.
        """

    def extend(
        self,
        layer: LayerCache,
        q: Array,
        k: Array,
        v: Array,
        scale: float,
        softcap: float,
        bias: KeyBias | None = None,
    ) -> Array:
        """`append` k and v and `attend` from q, as many tokens, which may be cut anywhere.

        Pages that fill up on the way are packed, so that every token reads what it would if it came
        alone, but not at the end: not before all layers have their tokens.
        """
        parts, tokens = [], k.shape[0]
        for cut in layer.segments(tokens):
            self.append(layer, k[cut], v[cut])
            parts.append(self.attend(q[cut], layer, scale, softcap, bias and bias.of(cut)))
            if cut.stop < tokens:
                self.seal(layer)
        return self.concatenate(parts)

    def seal(self, layer: LayerCache) -> None:
        """Pack the pages that are full, and old ones into smaller types where a budget asks."""
        layer.seal()
        layer.shrink()

    def recorded(self, body: Callable[[], Array]) -> Callable[[], np.ndarray]:
        """`body`, whose ops always have the same shapes, as something that can be called again and
        again and returns its result on the host.

        Ops read ids, positions and page tables when they run, so a backend may record them once.
        """
        return lambda: self.to_host(body())

    def submit(self) -> None:
        """Begin with the ops that were called and have not run yet, if that can be done while
        others are called: their inputs stay as they are until `finish`."""
        return None

    @abstractmethod
    def finish(self) -> None:
        """Run the ops that were called and have not run yet."""

    @abstractmethod
    def discard(self) -> None:
        """Forget ops that were called and have not run, after an error."""

    def linears(
        self, weights: Sequence[Weight], x: Array, biases: Sequence[Weight | None]
    ) -> list[Array]:
        """Several `linear` of one input, such as q, k and v or gate and up."""
        return [self.linear(w, x, b) for w, b in zip(weights, biases, strict=True)]


def not_finite(layer: int, side: SideCache, position: int) -> InputError:
    """The error for a key or value that cannot be stored."""
    name, kind = {"k": "key", "v": "value"}[side.side], side.type
    stored = kind.sink_format if position < kind.sink else kind.open_format
    return InputError(
        f"layer {layer}: the {name} of the token at position {position} is not finite as "
        f"{stored.name}; the model file is damaged or the type's range too small"
    )
