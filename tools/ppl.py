"""Perplexity of a text under a KV cache type, by the protocols of `tools.windows`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.kv.policy import Policy
from engine.model.load import Model
from tools.likelihood import negative_log_likelihood
from tools.windows import Settings, Windows, bits_per_value


@dataclass(frozen=True)
class Score:
    """Negative log likelihoods in nats of the tokens scored so far, one array per window."""

    windows: tuple[np.ndarray, ...]

    @property
    def tokens(self) -> int:
        return sum(len(window) for window in self.windows)

    @property
    def ppl(self) -> float:
        return math.exp(self._all().mean())

    @property
    def ppl_stderr(self) -> float:
        """The standard error as llama-perplexity computes it: from the variance over tokens."""
        nll = self._all()
        if len(nll) < 2:
            return math.nan
        variance = max(float(np.square(nll).mean() - nll.mean() ** 2), 0.0)
        return math.sqrt(variance / (len(nll) - 1)) * self.ppl

    def _all(self) -> np.ndarray:
        return np.concatenate(self.windows)


def nll_of(windows: Windows, index: int, policy: Policy) -> np.ndarray:
    """Negative log likelihoods float64 [scored tokens] of one window."""
    pieces = windows.scored(windows.session(policy), windows.tokens[index])
    ops = windows.model.ops
    return np.concatenate(
        [negative_log_likelihood(ops, logits, targets) for targets, logits in pieces]
    )


class Perplexity:
    """One measurement.  Iterating scores window after window and yields the Score so far.

    Raises InputError for a text too short, a context out of range or an unknown name.
    """

    def __init__(self, model: Model, text: str, settings: Settings) -> None:
        self.settings = settings
        self.windows = Windows(model, text, settings)
        self.policy = self.windows.stored(settings.kv)

    @property
    def bos_per_window(self) -> bool:
        return self.windows.bos_per_window

    def __iter__(self) -> Iterator[Score]:
        done: list[np.ndarray] = []
        for nll in self.windows.measured(lambda windows, i: nll_of(windows, i, self.policy)):
            done.append(nll)
            yield Score(tuple(done))

    def bits(self) -> tuple[float, float]:
        """Bits per value of packed keys and values, metadata and padding included."""
        return bits_per_value(self.windows.model.spec, self.policy)


def files_sha256(paths: Sequence[Path]) -> str:
    """The sha256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
