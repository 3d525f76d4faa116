"""A grid of key types by value types, and policies: all measured on the same tokens with one model
load.

Cells are independent, and on disk the moment they are finished; a sweep that was stopped, by
whatever means, goes on with the cells that are missing.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.kv.policy import Policy
from engine.model.load import Model
from engine.session import CHUNK
from tools.kld import Pieces, Tokens, compare
from tools.kld_report import Statistics
from tools.ppl import Score, files_sha256, nll_of
from tools.results import Cell, Outcome, Pair, Results, is_policy
from tools.speed import side_bytes, tokens_per_second
from tools.sweep_recall import Recall
from tools.windows import Settings, Windows, bits_per_value

METRICS = ("ppl", "kld", "recall", "bytes", "speed")
MAX_STATES = 4 << 30  # bytes of the reference run's hidden states


@dataclass(frozen=True)
class Grid:
    """Which pairs and policies, and what of each.  `base` is the reference pair, always a cell
    itself."""

    ctk: tuple[str, ...]
    ctv: tuple[str, ...]
    base: Pair = ("f16", "f16")
    metrics: tuple[str, ...] = ("ppl", "kld", "bytes", "speed")
    policies: tuple[Policy, ...] = ()

    def __post_init__(self) -> None:
        alone = self.policies and not (self.ctk or self.ctv)
        for what, names in (("key types", self.ctk), ("value types", self.ctv)):
            if not (names or alone):
                raise InputError(
                    f"no {what}: the grid has no cells; give --ctk and --ctv, or --kv-policy"
                )
        if not self.metrics:
            raise InputError(f"no metrics: choose from {', '.join(METRICS)}")
        for name in self.metrics:
            if name not in METRICS:
                raise InputError(f"{name}: not a metric. Choose from: {', '.join(METRICS)}")

    def pairs(self, seed: int) -> list[Pair]:
        """All cells, in an order that `seed` decides: an unfinished grid has no bias."""
        named = ((policy.name, policy.name) for policy in self.policies)
        pairs = sorted({self.base, *product(self.ctk, self.ctv), *named})
        random.Random(seed).shuffle(pairs)
        return pairs

    def policy(self, pair: Pair, sink: int) -> Policy:
        """How a cell is stored, a pair's with `sink` exact first tokens."""
        if not is_policy(pair):
            return Policy.of(*pair, sink)
        return next(policy for policy in self.policies if policy.name == pair[0])


class Reference:
    """The reference run of each window, kept as hidden states from which logits follow at will.

    States are [scored tokens, n_embd]: a hundredth of the logits, which come out bit for bit as the
    reference's own session gives them because they are computed from the same pieces.
    """

    def __init__(self, windows: Windows, policy: Policy) -> None:
        scored = windows.settings.n_ctx - windows.first + 1
        nbytes = len(windows.tokens) * scored * windows.model.spec.n_embd * 4
        if nbytes > MAX_STATES:
            raise InputError(
                f"{len(windows.tokens)} windows: the reference run would take {nbytes >> 20} MiB "
                f"of memory, {MAX_STATES >> 20} at most; use fewer --chunks"
            )
        self._first, self._policy = windows.first, policy
        self._states: dict[int, np.ndarray] = {}

    def beside(
        self, windows: Windows, index: int, candidate: Iterator[tuple[np.ndarray, np.ndarray]]
    ) -> Pieces:
        """The pieces of a candidate's run of window `index` with the reference's logits, which the
        model of `windows` computes."""
        model, start = windows.model, 0
        if index not in self._states:
            self._states[index] = self._run(model, windows.tokens[index])
        states = self._states[index]
        for targets, logits in candidate:
            # named, so that it lives until the backend has read it
            piece = model.ops.asarray(states[start : start + len(logits)])
            start += len(logits)
            yield targets, model.ops.to_host(model.logits(piece)), logits

    def _run(self, model: Model, window: Sequence[int]) -> np.ndarray:
        cache = model.new_cache(self._policy.of_layers(len(model.spec.layers)), len(window))
        chunks = []
        for start in range(0, len(window), CHUNK):
            ids = np.asarray(window[start : start + CHUNK], np.int32)
            chunks.append(model.ops.to_host(model.forward(ids, cache)))
        return np.concatenate(chunks)[self._first - 1 :].copy()


class Sweep:
    """A grid on one model and text.  `recall` is there if the grid has that metric.

    Raises InputError for names, sizes or types that no cell could be measured with.
    """

    def __init__(
        self,
        model: Model,
        text: str,
        settings: Settings,
        grid: Grid,
        recall: Recall | None = None,
    ) -> None:
        assert (recall is not None) == ("recall" in grid.metrics)
        self.model, self.grid, self._recall = model, grid, recall
        self._text_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.windows = Windows(model, text, settings)
        for name in {*grid.base, *grid.ctk, *grid.ctv}:
            # refuses what the backend cannot store, and contexts beyond the model's
            self.windows.session(self._stored((name, name)))
        for policy in grid.policies:
            self.windows.session(self.windows.stored(policy))
        self._reference = Reference(self.windows, self._stored(grid.base))
        self._side_bytes: dict[str, tuple[int, int]] = {}

    def identity(self) -> dict[str, Any]:
        """What all cells of one results file have in common, as JSON values."""
        settings = self.windows.settings
        asked = {} if self._recall is None else {"recall": str(self._recall.settings)}
        return {
            "model_sha256": files_sha256(self.model.checkpoint.paths),
            "text_sha256": self._text_sha256,
            "protocol": settings.protocol,
            "n_ctx": settings.n_ctx,
            "windows": len(self.windows.tokens),
            "bos_per_window": self.windows.bos_per_window,
            "base": list(self.grid.base),
            "metrics": sorted(self.grid.metrics),
            "backend": self.model.ops.name,
            **({"sink": settings.sink} if settings.sink else {}),  # files without it go on
            **asked,
        }

    def pending(self, results: Results, seed: int) -> list[Pair]:
        """The cells that `results` lacks, in order."""
        done = results.done()
        return [pair for pair in self.grid.pairs(seed) if pair not in done]

    def run(self, results: Results, pending: Sequence[Pair]) -> Iterator[tuple[Pair, Outcome]]:
        """Measure the cells one by one into `results`; yields what comes of each."""
        for pair in pending:
            if pair in results.done():
                continue  # another process has been here
            outcome = self.outcome(pair)
            results.keep(pair, outcome)
            yield pair, outcome

    def outcome(self, pair: Pair) -> Outcome:
        """One cell, or the line on its failure."""
        try:
            return self.measure(pair)
        except Exception as error:
            return told(error)

    def measure(self, pair: Pair) -> Cell:
        """One cell.  `seconds` is what all its measurements took."""
        start = time.perf_counter()
        metrics, policy, window = self.grid.metrics, self._stored(pair), self.windows.tokens[0]
        bits_k, bits_v = bits_per_value(self.model.spec, policy)
        values: dict[str, Any] = {"bits_k": bits_k, "bits_v": bits_v}
        if is_policy(pair):
            values |= {"sink": policy.sink, "recent": policy.recent, "policy": policy.source}
        nll = np.zeros(0)
        if "kld" in metrics:
            tokens = self._compared(policy)
            values |= Statistics(tokens).values()
            nll = tokens.nll
        elif "ppl" in metrics:
            nll, values["ppl"], values["ppl_stderr"] = self._scored(policy)
        if not np.isfinite(nll).all():
            raise InputError("the model's logits are not finite")
        if "bytes" in metrics:
            values["kv_bytes"] = self._bytes(pair)
        if "speed" in metrics:
            speed = tokens_per_second(self.model, window, self._policy(pair))
            values["prefill_tps"], values["decode_tps"] = speed
        if self._recall is not None:
            values |= self._recall.measure(pair)
        values |= {"tokens": len(nll), "seconds": time.perf_counter() - start}
        return Cell(pair, values, nll)

    def _policy(self, pair: Pair) -> Policy:
        return self.grid.policy(pair, self.windows.settings.sink)

    def _stored(self, pair: Pair) -> Policy:
        """The same as the protocol stores it."""
        return self.windows.stored(self._policy(pair))

    def _compared(self, policy: Policy) -> Tokens:
        def compared(windows: Windows, index: int) -> Tokens:
            candidate = windows.scored(windows.session(policy), windows.tokens[index])
            pieces = self._reference.beside(windows, index, candidate)
            return compare(windows.model.ops, pieces, windows.first)

        return Tokens.join(list(self.windows.measured(compared)))

    def _scored(self, policy: Policy) -> tuple[np.ndarray, float, float | None]:
        parts = tuple(self.windows.measured(lambda windows, i: nll_of(windows, i, policy)))
        score = Score(parts)
        error = score.ppl_stderr
        return np.concatenate(parts), score.ppl, None if math.isnan(error) else error

    def _bytes(self, pair: Pair) -> int:
        """Of a window.  Keys and values do not depend on each other: once per type is enough."""
        for name in set(pair) - self._side_bytes.keys():
            policy = self._policy((name, name))
            self._side_bytes[name] = side_bytes(self.model, self.windows.tokens[0], policy)
        return self._side_bytes[pair[0]][0] + self._side_bytes[pair[1]][1]


def told(error: BaseException) -> str:
    """A failure in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
