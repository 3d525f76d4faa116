"""The reference backend: slow, obvious NumPy, the oracle of every op."""

from __future__ import annotations

import numpy as np

from engine.checkpoint import Tensor
from engine.errors import InputError
from engine.kv.cache import CacheType, LayerCache, SideCache
from engine.kv.format import TokenFormat
from engine.kv.modifiers import hadamard_matrix
from engine.ops import KeyBias, Ops, not_finite


def dequantize(tensor: Tensor) -> np.ndarray:
    """float32 values of a tensor of any type the `gguf` package can decode, in its shape."""
    if tensor.type == "F32":  # without an import that takes 20 ms: every model has some
        return tensor.data.view(np.float32).reshape(tensor.shape)
    import gguf
    from gguf import quants

    kind = gguf.GGMLQuantizationType[tensor.type]
    try:
        values = quants.dequantize(tensor.data, kind)
    except NotImplementedError:
        raise InputError(f"tensor {tensor.name}: type {tensor.type} cannot be decoded") from None
    return values.astype(np.float32, copy=False).reshape(tensor.shape)


class ReferenceOps(Ops):
    """Every op in float32 NumPy, attention over decoded pages."""

    name = "reference"

    def upload(self, tensor: Tensor) -> np.ndarray:
        return dequantize(tensor)

    def asarray(self, x: np.ndarray) -> np.ndarray:
        return x

    def to_host(self, x: np.ndarray) -> np.ndarray:
        return x

    def finish(self) -> None:
        """Nothing: ops run when they are called."""

    def discard(self) -> None:
        """Nothing: no op waits."""

    def concatenate(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def supports(self, kind: CacheType) -> bool:
        return True

    def embed(self, weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return weight[ids]

    def linear(
        self, weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None = None
    ) -> np.ndarray:
        y = x @ weight.T
        return y if bias is None else y + bias

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        mean = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(mean + np.float32(eps)) * weight

    def rope_(self, x: np.ndarray, table: np.ndarray, position: np.ndarray, layout: str) -> None:
        pairs, first = table.shape[1], int(position[0])
        cos, sin = np.moveaxis(table[first : first + x.shape[0], None], -1, 0)
        if layout == "neox":
            first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
        else:
            first, second = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        # the right-hand sides are complete before either view is written
        first[:], second[:] = first * cos - second * sin, first * sin + second * cos

    def hadamard(self, x: np.ndarray) -> np.ndarray:
        return x @ hadamard_matrix(x.shape[-1])

    def glu(self, gate: np.ndarray, up: np.ndarray, act: str) -> np.ndarray:
        return ACTIVATIONS[act](gate) * up

    def add_(self, x: np.ndarray, y: np.ndarray) -> None:
        x += y

    def scale_(self, x: np.ndarray, factor: float) -> None:
        x *= np.float32(factor)

    def softcap_(self, x: np.ndarray, cap: float) -> None:
        x[:] = np.float32(cap) * np.tanh(x / np.float32(cap))

    def log_masses(self, logits: np.ndarray) -> np.ndarray:
        x = logits.astype(np.float64)
        top = x.max(axis=-1, keepdims=True)
        return (top + np.log(np.exp(x - top).sum(axis=-1, keepdims=True)))[:, 0]

    def divergences(self, base: np.ndarray, logits: np.ndarray) -> np.ndarray:
        p, q = self.log_masses(base), self.log_masses(logits)
        probabilities = np.exp(base - p[:, None])
        difference = base.astype(np.float64) - logits
        kld = (probabilities * difference).sum(axis=-1) / probabilities.sum(axis=-1) - (p - q)
        return np.stack([np.maximum(kld, 0), p, q], axis=1)

    def append(self, layer: LayerCache, k: np.ndarray, v: np.ndarray) -> None:
        layer.open_pages(len(k))
        for side, x in ((layer.k, k), (layer.v, v)):
            # no comparison holds for a NaN
            kind = side.type
            limit = kind.sink_format.limit if side.in_sink else kind.limit
            bad = np.flatnonzero(~(np.abs(x) <= limit).all(axis=(1, 2)))
            if bad.size:
                raise not_finite(layer.index, side, side.n + int(bad[0]))
            _write_rows(side, x)
        layer.count.pending += k.shape[0]

    def attend(
        self,
        q: np.ndarray,
        layer: LayerCache,
        scale: float,
        softcap: float,
        bias: KeyBias | None = None,
    ) -> np.ndarray:
        tokens, heads, dim = q.shape
        if layer.k.queries is not None:
            layer.k.queries.write(layer.n - tokens - layer.k.type.sink, q)
        first = 0
        if layer.window is not None:
            first = max(layer.k.first_held(), layer.v.first_held())
        k, v = (_decode(side, first) for side in (layer.k, layer.v))
        group = heads // k.shape[0]
        queries = q.reshape(tokens, k.shape[0], group, dim)
        scores = np.einsum("thgd,hnd->hgtn", queries, k)
        if bias is not None:
            queries = bias.queries.reshape(queries.shape)
            scores += np.einsum("thgd,nhd->hgtn", queries, self._biases(bias, first, layer.n))
        scores *= np.float32(scale)
        if softcap:
            self.softcap_(scores, softcap)
        position = np.arange(layer.n - tokens, layer.n)[:, None]
        token = np.arange(first, layer.n)[None, :]
        hidden = token > position
        if layer.window is not None:
            hidden |= token <= position - layer.window
        scores = np.where(hidden, np.float32(-np.inf), scores)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return np.einsum("hgtn,hnd->thgd", scores, v).reshape(tokens, heads, dim)

    def _biases(self, bias: KeyBias, first: int, n: int) -> np.ndarray:
        """The keys' bias at positions first..n, float32 [n - first, kv_heads, D]."""
        x = np.repeat(bias.bias[None], n - first, axis=0)
        self.rope_(x, bias.table, np.array([first]), bias.layout)
        return x


def _silu(x: np.ndarray) -> np.ndarray:
    # x sigmoid(x) without overflow: sigmoid(x) = (1 + tanh(x / 2)) / 2
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(0.5) * x))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


ACTIVATIONS = {"silu": _silu, "gelu_tanh": _gelu_tanh}


def _write_rows(side: SideCache, x: np.ndarray) -> None:
    """Encode x [T, kv_heads, D] into the open pages behind the tokens they already hold."""
    size, done = side.type.page_tokens, 0
    if side.in_sink:
        _write(side, side.type.sink_format, side.sinks, side.n, x)
        return
    while done < len(x):
        index, start = divmod(side.paged + done, size)
        part = x[done : done + size - start]
        _write(side, side.type.open_format, side.open_page(index), start, part)
        done += len(part)


def _write(
    side: SideCache, stored: TokenFormat, page: np.ndarray, start: int, x: np.ndarray
) -> None:
    """Encode x [T, kv_heads, D] into the rows of `page` from `start` on."""
    row = stored.row_nbytes(side.head_dim)
    encoded = stored.encode(np.ascontiguousarray(x.swapaxes(0, 1)), side.side)
    page[:, start * row : (start + len(x)) * row] = encoded


def _decode(side: SideCache, first: int) -> np.ndarray:
    """Tokens first..n; the side's own pages may begin earlier."""
    start = side.page_start(first)
    return side.decode(start)[:, first - start :]
