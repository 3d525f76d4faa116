"""Figures of a layer's keys or values that tell which cache types suit them.

Arrays x are float32 [heads, T, D] as the cache gets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.kv.cache import CacheType
from engine.kv.format import KVFormat, Side
from engine.kv.formats import kv_format

SINKS = 4  # first tokens: attention sinks, whose lengths and directions are their own
BITS = range(2, 9)
FAMILIES: tuple[Literal["row", "nsep"], ...] = ("row", "nsep")


def outlier_ratio(x: np.ndarray) -> float:
    """max_d max_t |x| / mean_d max_t |x| of the worst head: how far one channel stands out."""
    peaks = np.abs(x).max(axis=1)
    return float(_ratio(peaks.max(axis=1), peaks.mean(axis=1)).max())


def dispersion(x: np.ndarray) -> float:
    """std |x_t| / mean |x_t| of the worst head: how unlike the tokens' lengths are."""
    lengths = np.linalg.norm(x, axis=-1)
    return float(_ratio(lengths.std(axis=1), lengths.mean(axis=1)).max())


def spectrum(x: np.ndarray) -> np.ndarray:
    """Singular values of each head's [T, D], their squares summing to 1, as the mean over heads
    float64 [D], falling."""
    gram = np.matmul(x.swapaxes(1, 2), x).astype(np.float64)
    energy = np.maximum(np.linalg.eigvalsh(gram)[:, ::-1], 0.0)
    return np.sqrt(_ratio(energy, energy.sum(axis=1, keepdims=True)).mean(axis=0))


def directions(values: np.ndarray, share: float = 0.9) -> int:
    """How many of the falling singular `values` hold this share of the energy."""
    return int(np.searchsorted(np.cumsum(values**2), share) + 1)


@dataclass(frozen=True)
class Error:
    """What packing did to x.  `mse` is over all values, `cosine` the mean over tokens, `noise` the
    worst and `mean_noise` the mean over heads of the error's power beside the variation."""

    mse: float
    cosine: float
    noise: float
    mean_noise: float


def packing_error(
    x: np.ndarray, kind: KVFormat, side: Side, offset: np.ndarray | None = None
) -> Error:
    """The error of storing whole pages of x as `kind`, or of x - `offset`, which is added back.

    Noise is sum |error_t|^2 / sum |x_t - mean_t x|^2 without the sinks.  What all keys share, a
    bias for example, adds the same to all scores of a query, which softmax does not see: so for
    keys the error's own mean is taken off as well.
    """
    size = CacheType.of(kind).page_tokens
    whole = x.shape[1] // size * size
    x = x[:, :whole]
    packed = x if offset is None else x - offset[:, :whole]
    error = _packed(packed, kind, side, size) - packed
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(x + error, axis=-1)
    cosine = _ratio(np.sum(x * (x + error), axis=-1), lengths)
    x, rest = x[:, SINKS:], error[:, SINKS:]
    if side == "k":
        rest = rest - rest.mean(axis=1, keepdims=True)
    noise = _ratio(_power(rest), _power(x - x.mean(axis=1, keepdims=True)))
    mse = float(np.square(error, dtype=np.float64).mean())
    return Error(mse, float(cosine.mean()), float(noise.max()), float(noise.mean()))


def bit_scan(x: np.ndarray, side: Side) -> dict[str, list[Error]]:
    """The error at 2 to 8 bits of each of FAMILIES: one scale per token, norms separated."""
    return {
        family: [packing_error(x, kv_format(f"int{bits}{family}"), side) for bits in BITS]
        for family in FAMILIES
    }


def _packed(x: np.ndarray, kind: KVFormat, side: Side, size: int) -> np.ndarray:
    heads, tokens, dim = x.shape
    pages = np.ascontiguousarray(x.reshape(heads, tokens // size, size, dim))
    return kind.decode(kind.encode(pages, side), dim, side).reshape(x.shape)


def _power(x: np.ndarray) -> np.ndarray:
    return np.square(x, dtype=np.float64).sum(axis=(1, 2))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b > 0)
