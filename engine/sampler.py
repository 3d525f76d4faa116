"""From logits to the next token id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import InputError

PENALTY_WINDOW = 64  # tokens that the repeat penalty looks back on, as in llama.cpp


@dataclass(frozen=True)
class SamplerSpec:
    """Settings, with llama.cpp's defaults and order: penalty, top-k, top-p, min-p, temperature.

    `temp` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `repeat_penalty` 1 switch a step off.
    Raises InputError for a value out of range.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temp, 0 <= self.temp < float("inf"), "0 or more")
        _check("top-k", self.top_k, self.top_k >= 0, "0 or more")
        _check("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and up to 1")
        _check("min-p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        good = 0 < self.repeat_penalty < float("inf")
        _check("repeat-penalty", self.repeat_penalty, good, "above 0")
        _check("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more")


class Sampler:
    """A stream of choices: the same spec with a seed gives the same choices."""

    def __init__(self, spec: SamplerSpec) -> None:
        self.spec = spec
        self._random = np.random.default_rng(spec.seed)

    def sample(self, logits: np.ndarray, history: Sequence[int]) -> int:
        """The next token after `history`, from logits float32 [n_vocab].

        Raises InputError if the largest logit is not finite: any choice would be noise.
        """
        spec = self.spec
        if not np.isfinite(logits.max()):
            raise InputError("the model's logits are not finite: its file is damaged")
        if spec.repeat_penalty != 1.0:
            logits = _penalized(logits, history[-PENALTY_WINDOW:], spec.repeat_penalty)
        if spec.temp == 0:
            return int(np.argmax(logits))
        ids, kept = _top_k(logits, spec.top_k)
        keep = _top_p(kept, spec.top_p) & _min_p(kept, spec.min_p)
        ids, kept = ids[keep], kept[keep]
        # relative to the largest, which no temperature can make overflow
        return int(self._random.choice(ids, p=_softmax((kept - kept.max()) / spec.temp)))


def _check(name: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise InputError(f"{name} {value}: must be {allowed}")


def _penalized(logits: np.ndarray, recent: Sequence[int], penalty: float) -> np.ndarray:
    """Keskar et al. 2019: push the logits of recent tokens toward and below zero."""
    seen = np.unique(np.asarray(recent, np.int64))
    logits = logits.astype(np.float64)  # a copy, in which no penalty overflows
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def _top_k(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float64 logits of the k largest, in descending order; ties go to the lower id."""
    if 0 < k < logits.size:
        # everything as large as the k-th value, so that ties are cut by id and not by chance
        edge = np.partition(logits, logits.size - k)[logits.size - k]
        ids = np.flatnonzero(logits >= edge)
    else:
        k, ids = logits.size, np.arange(logits.size)
    order = np.argsort(-logits[ids], kind="stable")[:k]
    return ids[order], logits[ids[order]].astype(np.float64)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """The shortest leading run whose probability reaches p (Holtzman et al. 2020)."""
    before = np.cumsum(_softmax(logits)) - _softmax(logits)
    return before < p


def _min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Those at least p times as likely as the most likely one (Nguyen et al. 2024)."""
    return _softmax(logits) >= p * _softmax(logits).max()
