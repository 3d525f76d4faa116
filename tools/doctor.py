"""Which cache types suit a model: figures per layer, what every type would cost, a recommendation.

The cost of a type is predicted from its *noise*, the power of its error beside the variation
between tokens (`tools.doctor_figures`).  Measured in windows of 512 tokens (docs/log.md), mean KLD
was noise times a factor that depends on the side and on whether the newest tokens are still exact;
where one head's noise passes a quarter, KLD ran away from any prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from engine.errors import InputError
from engine.kv.cache import CacheType
from engine.kv.format import Side
from engine.kv.formats import FLOATS, kv_format
from engine.model.load import Model
from tools.doctor_figures import (
    BITS,
    Error,
    bit_scan,
    dispersion,
    outlier_ratio,
    packing_error,
    spectrum,
)
from tools.doctor_sources import Layer
from tools.kld import Divergence, Tokens
from tools.windows import Settings

# The plain types and the norm-separated family; the rest of the grid is for ablations.
CANDIDATES = ("bf16", "q8_0", "q6_0", "q5_0", "q4_0", "int4nsep", "int3nsep", "int2nsep")
WITH_BIAS = "+nob"  # modifier: keys in a quantized type keep their bias, by default they do not
LOST = 0.25  # noise from which on a head is taken for lost
BOUND = 0.02  # nats of mean KLD: the likeliest token stays the same some 92 times in 100
# mean KLD / noise, the middle of what was measured: (side, whether the newest tokens are exact)
KLD_PER_NOISE = {("k", False): 3.0, ("k", True): 1.0, ("v", False): 0.7, ("v", True): 0.1}
WITHIN = 3  # most measured ones lie within this factor of the prediction
WINDOW = 512  # tokens of a window that a measurement scores


@dataclass(frozen=True)
class SideFigures:
    """Keys or values of a layer.  `scan` is None where random inputs took the place of a text."""

    outlier_ratio: float
    dispersion: float
    dispersion_without_first: float
    spectrum: np.ndarray
    scan: dict[str, list[Error]] | None


@dataclass(frozen=True)
class LayerFigures:
    k: SideFigures
    v: SideFigures


@dataclass(frozen=True)
class Candidate:
    """A type for one side.  `noise` is the worst head's, per layer; `mean_noise` of all heads."""

    name: str
    side: Side
    bits: float
    noise: tuple[float, ...]
    mean_noise: float

    @property
    def worst_layer(self) -> int:
        return int(np.argmax(self.noise))

    @property
    def worst(self) -> float:
        return max(self.noise)

    @property
    def loses(self) -> bool:
        """Whether no prediction holds, because a head would be lost."""
        return self.worst > LOST

    @property
    def exact_tail(self) -> bool:
        """Whether the newest tokens are kept exactly until their page is full."""
        return CacheType.of(kv_format(self.name)).tail is not None

    @property
    def expected_kld(self) -> float:
        return KLD_PER_NOISE[self.side, self.exact_tail] * self.mean_noise


@dataclass(frozen=True)
class Recommendation:
    k: Candidate
    v: Candidate

    @property
    def pair(self) -> tuple[str, str]:
        return self.k.name, self.v.name

    @property
    def expected_kld(self) -> float:
        return self.k.expected_kld + self.v.expected_kld


class Examination:
    """Figures of all layers in order, and every candidate for keys and for values."""

    def __init__(self, layers: Iterable[Layer], *, scan: bool) -> None:
        self.layers: list[LayerFigures] = []
        errors: dict[tuple[str, Side], list[Error]] = {}
        sizes: list[tuple[int, int]] = []  # KV heads, head_dim
        biased = False
        for layer in layers:
            skip = int(layer.first == 0)
            self.layers.append(
                LayerFigures(_figures(layer.k, "k", skip, scan), _figures(layer.v, "v", skip, scan))
            )
            sizes.append((layer.k.shape[0], layer.k.shape[2]))
            biased |= layer.k_bias is not None
            for key, error in _errors(layer):
                errors.setdefault(key, []).append(error)
        self.candidates = [
            _candidate(name, side, found, sizes)
            for (name, side), found in errors.items()
            if biased or not name.endswith(WITH_BIAS)
        ]

    def of(self, side: Side) -> list[Candidate]:
        """The candidates for one side, from many bits to few."""
        found = [candidate for candidate in self.candidates if candidate.side == side]
        return sorted(found, key=lambda candidate: (-candidate.bits, candidate.expected_kld))

    def recommendation(self, bound: float) -> Recommendation:
        """The pair of the fewest bits whose expected KLD is at most `bound` nats and that loses no
        head; of none is, the pair expected to be best."""
        safe = [
            Recommendation(k, v)
            for k in self.of("k")
            for v in self.of("v")
            if not (k.loses or v.loses)
        ]
        if not safe:
            raise InputError("the keys or values do not vary: no cache type can be judged by them")
        good = [pair for pair in safe if pair.expected_kld <= bound]
        if not good:
            return min(safe, key=lambda pair: pair.expected_kld)
        return min(good, key=lambda pair: (pair.k.bits + pair.v.bits, pair.expected_kld))


def measure(model: Model, text: str, pair: tuple[str, str], windows: int) -> Tokens:
    """What `pair` really costs beside an f16 cache, token by token as in decoding."""
    n_ctx = min(WINDOW, model.spec.n_ctx_train) // 2 * 2
    settings = Settings("decode", n_ctx, windows, *pair)
    *_, tokens = Divergence(model, text, settings)
    return tokens


def valley(model: Model, text: str) -> Iterator[tuple[int, float]]:
    """(bits, mean KLD) of keys with one scale per token, values in f16, over one window."""
    for bits in BITS:
        yield bits, float(measure(model, text, (f"int{bits}row", "f16"), 1).kld.mean())


def _figures(x: np.ndarray, side: Side, skip: int, scan: bool) -> SideFigures:
    return SideFigures(
        outlier_ratio(x),
        dispersion(x),
        dispersion(x[:, skip:]),
        spectrum(x),
        bit_scan(x, side) if scan else None,
    )


def _errors(layer: Layer) -> Iterator[tuple[tuple[str, Side], Error]]:
    """Of every candidate as a session stores it, and of keys that keep their bias."""
    for name in CANDIDATES:
        kind, bias = kv_format(name), layer.k_bias
        whole = packing_error(layer.k, kind, "k")
        alike = bias is None or kind in FLOATS
        yield (name, "k"), whole if alike else packing_error(layer.k, kind, "k", bias)
        yield (name, "v"), packing_error(layer.v, kind, "v")
        if kind not in FLOATS:
            yield (name + WITH_BIAS, "k"), whole


def _candidate(
    name: str, side: Side, errors: list[Error], sizes: list[tuple[int, int]]
) -> Candidate:
    kind = CacheType.of(kv_format(name))
    heads = np.array([heads for heads, _ in sizes])
    bits = [kind.bits_per_value(dim) for _, dim in sizes]
    return Candidate(
        name,
        side,
        float(np.average(bits, weights=[heads * dim for heads, dim in sizes])),
        tuple(error.noise for error in errors),
        float(np.average([error.mean_noise for error in errors], weights=heads)),
    )
