"""Perplexity of a text under a KV cache type, measured through the engine's own packed cache.

Protocols (windows never share state):

- `llama`: as llama-perplexity does it. Non-overlapping windows of `n_ctx` tokens; every token of
the
  second half but its first is scored. If the model wants BOS it replaces each window's first token.
- `pa`: as the norm-separation papers do it. The text's non-blank lines joined by two newlines, its
  first 48,000 characters; windows of `n_ctx` tokens that start every n_ctx / 2. The first half is
  read exactly, then frozen into one packed page; the second half, all scored, reads that page and
  itself exactly.
- `decode`: what a user gets. Non-overlapping windows; every token but the first is scored, reading
  full pages packed and its own page exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.kv.cache import CacheType
from engine.kv.formats import kv_format
from engine.kv.formats.floats import F32
from engine.model.load import Model
from engine.session import Session

PROTOCOLS = ("llama", "pa", "decode")
PA_CHARACTERS = 48_000


@dataclass(frozen=True)
class Settings:
    """What is measured.  `chunks` is the most windows, None for all the text has."""

    protocol: str = "llama"
    n_ctx: int = 512
    chunks: int | None = None
    ctk: str = "bf16"
    ctv: str = "bf16"
    bos_per_window: bool | None = None  # None: if the model's tokenizer adds one


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


class Perplexity:
    """One measurement.  Iterating scores window after window and yields the Score so far.

    Raises InputError for a text too short, a context out of range or an unknown name.
    """

    def __init__(self, model: Model, text: str, settings: Settings) -> None:
        if settings.protocol not in PROTOCOLS:
            raise InputError(
                f"{settings.protocol}: not a protocol. Choose from: {', '.join(PROTOCOLS)}"
            )
        if settings.n_ctx < 4 or settings.n_ctx % 2:
            raise InputError(f"context {settings.n_ctx}: must be an even number from 4 up")
        if settings.chunks is not None and settings.chunks < 1:
            raise InputError(f"chunks {settings.chunks}: must be 1 or more")
        self.model, self.settings = model, settings
        self.types = tuple(self._cache_type(name) for name in (settings.ctk, settings.ctv))
        bos = settings.bos_per_window
        self.bos_per_window = model.tokenizer.add_bos if bos is None else bos
        if self.bos_per_window and model.tokenizer.bos is None:
            raise InputError("the model's tokenizer has no BOS token to begin windows with")
        self._windows = self._cut(text)

    @property
    def n_windows(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[Score]:
        done: list[np.ndarray] = []
        for window in self._windows:
            done.append(self._score(window))
            yield Score(tuple(done))

    def bits(self) -> tuple[float, float]:
        """Bits per value of packed keys and values, metadata and padding included."""
        dims = [layer.attention.head_dim for layer in self.model.spec.layers]
        heads = [layer.attention.kv_heads for layer in self.model.spec.layers]
        weights = [dim * head for dim, head in zip(dims, heads, strict=True)]
        k, v = (
            sum(t.bits_per_value(d) * w for d, w in zip(dims, weights, strict=True)) / sum(weights)
            for t in self.types
        )
        return k, v

    def _cache_type(self, name: str) -> CacheType:
        kind = CacheType.of(kv_format(name))
        if self.settings.protocol != "pa":
            return kind
        # one page over the first half, every later token exact
        half = self.settings.n_ctx // 2
        stored = kind.format
        if stored.page_tokens is not None:
            if half % 32:
                raise InputError(
                    f"context {self.settings.n_ctx}: {name} needs a multiple of 64 for protocol pa"
                )
            stored = replace(stored, page_tokens=half)
        return CacheType(stored, half, F32)

    def _cut(self, text: str) -> list[list[int]]:
        size = self.settings.n_ctx
        if self.settings.protocol == "pa":
            lines = [line for line in text.splitlines(keepends=True) if line.strip()]
            tokens = self.model.tokenizer.encode("\n\n".join(lines)[:PA_CHARACTERS])
            starts = range(0, len(tokens) - size + 1, size // 2)
        else:
            tokens = self.model.tokenizer.encode(text, add_special=True)
            starts = range(0, len(tokens) - size + 1, size)
        if not starts:
            raise InputError(
                f"the text has {len(tokens)} tokens: fewer than one window of {size}; "
                "use a longer text or a smaller -c"
            )
        windows = [tokens[start : start + size] for start in starts[: self.settings.chunks]]
        if self.bos_per_window:
            bos = self.model.tokenizer.bos
            assert bos is not None
            windows = [[bos, *window[1:]] for window in windows]
        return windows

    def _score(self, window: Sequence[int]) -> np.ndarray:
        half = len(window) // 2
        # the first token whose prediction counts
        first = {"llama": half + 1, "pa": half, "decode": 1}[self.settings.protocol]
        session = Session(self.model, n_ctx=len(window), ctk=self.types[0], ctv=self.types[1])
        nll = []
        targets = np.roll(window, -1)
        for start, logits in session.score(window, first - 1):
            nll.append(negative_log_likelihood(logits, targets[start : start + len(logits)]))
        # the last token predicts nothing that the window holds
        return np.concatenate(nll)[:-1]


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-ln softmax(logits)[target] as float64 [n], from float32 logits [n, n_vocab]."""
    top = logits.max(axis=-1)
    mass = np.exp(logits - top[:, None]).sum(axis=-1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    return np.log(mass) + top - chosen


def files_sha256(paths: Sequence[Path]) -> str:
    """The sha256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
