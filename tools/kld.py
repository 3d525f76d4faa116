"""KL divergence of a model's next-token probabilities under one KV cache type from another's.

The reference and the candidate read the same windows side by side over one copy of the weights,
piece by piece, so memory is that of two caches and two pieces of logits at any context length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from engine.kv.policy import Policy
from engine.model.load import Model
from engine.ops import Ops
from tools.likelihood import divergence
from tools.windows import Settings, Windows, bits_per_value

# (targets, the reference's logits, the candidate's), piece by piece as `Windows.scored` yields them
Pieces = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Tokens:
    """What was measured of scored tokens, float64 arrays [tokens] in order of the text.

    `position` is how many tokens of the window stand before the token.  `same_top` is 1 where both
    caches find the same token likeliest, else 0.
    """

    position: np.ndarray
    nll: np.ndarray
    nll_base: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray

    @property
    def p_diff(self) -> np.ndarray:
        """The token's probability minus that under the reference."""
        return np.exp(-self.nll) - np.exp(-self.nll_base)

    def __len__(self) -> int:
        return len(self.nll)

    @classmethod
    def join(cls, parts: list[Tokens]) -> Tokens:
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def compare(ops: Ops, pieces: Pieces, first: int) -> Tokens:
    """Compare two runs of one window, whose first scored token is `first`."""
    parts = []
    for targets, base, logits in pieces:
        kld, nll_base, nll = divergence(ops, base, logits, targets)
        tops = (x[: len(targets)].argmax(axis=1) for x in (base, logits))
        position = np.arange(first, first + len(targets), dtype=np.float64)
        parts.append(Tokens(position, nll, nll_base, kld, np.equal(*tops).astype(np.float64)))
        first += len(targets)
    return Tokens.join(parts)


class Divergence:
    """One measurement of what `settings.kv` stores against the types `base`.

    Iterating scores window after window and yields the Tokens so far.  Raises InputError for a text
    too short, a context out of range or an unknown name.
    """

    def __init__(
        self, model: Model, text: str, settings: Settings, base: tuple[str, str] = ("f16", "f16")
    ) -> None:
        self.settings, self.base = settings, base
        self.windows = Windows(model, text, settings)
        self.policy = self.windows.stored(settings.kv)
        self._base_policy = self.windows.stored(Policy.of(*base))

    def __iter__(self) -> Iterator[Tokens]:
        done: list[Tokens] = []
        for tokens in self.windows.measured(self._compared):
            done.append(tokens)
            yield Tokens.join(done)

    def bits(self) -> tuple[float, float]:
        """Bits per value of the candidate's packed keys and values."""
        return bits_per_value(self.windows.model.spec, self.policy)

    def _compared(self, windows: Windows, index: int) -> Tokens:
        return compare(windows.model.ops, self._side_by_side(windows, index), windows.first)

    def _side_by_side(self, windows: Windows, index: int) -> Pieces:
        base, candidate = (
            windows.scored(windows.session(policy), windows.tokens[index])
            for policy in (self._base_policy, self.policy)
        )
        for (targets, base_logits), (_, logits) in zip(base, candidate, strict=True):
            yield targets, base_logits, logits
