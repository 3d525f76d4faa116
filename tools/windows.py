"""A text cut into windows that are scored through the engine's own packed cache.

Protocols (windows never share state):

- `llama`: as llama-perplexity does it. Non-overlapping windows of `n_ctx` tokens; every token of
  the second half but its first is scored. If the model wants BOS it replaces each window's first
  token.
- `pa`: as the norm-separation papers do it. The text's non-blank lines joined by two newlines, its
  first 48,000 characters; windows of `n_ctx` tokens that start every n_ctx / 2. The first half is
  read exactly, then frozen into one packed page; the second half, all scored, reads that page and
  itself exactly.
- `decode`: what a user gets. Non-overlapping windows; every token but the first is scored, reading
  full pages packed and its own page exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from engine.errors import InputError
from engine.kv.cache import CacheType
from engine.kv.formats.floats import F32
from engine.kv.policy import Policy
from engine.model.load import Model
from engine.model.spec import ModelSpec
from engine.session import Session

PROTOCOLS = ("llama", "pa", "decode")
PA_CHARACTERS = 48_000
SIDE_BY_SIDE = 4  # windows at a time at most: each has its caches and logits

Found = TypeVar("Found")


@dataclass(frozen=True)
class Settings:
    """What is measured.  `chunks` is the most windows, None for all the text has.

    Raises InputError for a value out of range, so that it is refused before a model is loaded.
    """

    protocol: str = "llama"
    n_ctx: int = 512
    chunks: int | None = None
    ctk: str = "bf16"
    ctv: str = "bf16"
    bos_per_window: bool | None = None  # None: if the model's tokenizer adds one
    sink: int = 0  # first tokens of a window that stay exact
    policy: Policy | None = None  # in the place of ctk, ctv and sink

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            choices = ", ".join(PROTOCOLS)
            raise InputError(f"{self.protocol}: not a protocol. Choose from: {choices}")
        if self.n_ctx < 4 or self.n_ctx % 2:
            raise InputError(f"context {self.n_ctx}: must be an even number from 4 up")
        if self.chunks is not None and self.chunks < 1:
            raise InputError(f"chunks {self.chunks}: must be 1 or more")
        self.check(self.kv)

    @property
    def kv(self) -> Policy:
        """How the cache is stored."""
        return self.policy or Policy.of(self.ctk, self.ctv, self.sink)

    def check(self, policy: Policy) -> None:
        """Raise InputError for a policy that the protocol cannot measure."""
        for tokens, which in ((policy.sink, "first"), (policy.recent, "newest")):
            if self.protocol == "pa" and tokens:
                raise InputError(f"{tokens} exact {which} tokens: protocol pa takes none")


class Windows:
    """The windows of a text, lists of `n_ctx` token ids in `tokens`.

    Raises InputError for a text too short or a missing BOS token.
    """

    def __init__(self, model: Model, text: str, settings: Settings) -> None:
        self.model, self.settings, self.stopped = model, settings, False
        bos = settings.bos_per_window
        self.bos_per_window = model.tokenizer.add_bos if bos is None else bos
        if self.bos_per_window and model.tokenizer.bos is None:
            raise InputError("the model's tokenizer has no BOS token to begin windows with")
        self.tokens = self._cut(text)

    @property
    def first(self) -> int:
        """Index in a window of the first token whose prediction counts."""
        half = self.settings.n_ctx // 2
        return {"llama": half + 1, "pa": half, "decode": 1}[self.settings.protocol]

    def stored(self, policy: Policy) -> Policy:
        """How this protocol stores what `policy` says.  Raises InputError if it cannot."""
        self.settings.check(policy)
        return policy.mapped(self._type) if self.settings.protocol == "pa" else policy

    def session(self, policy: Policy) -> Session:
        """An empty session for one window."""
        return Session(self.model, n_ctx=self.settings.n_ctx, policy=policy)

    def scored(
        self, session: Session, window: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Run a window, yielding (targets int [m], logits float32 [n, n_vocab]) piece by piece.

        Row i of the logits predicts target i.  In the last piece m = n - 1: the window's last token
        predicts nothing that the window holds.
        """
        ids = np.asarray(window)
        for start, logits in session.score(window, self.first - 1):
            if self.stopped:
                raise CancelledError("nobody waits for this window any more")
            yield ids[start + 1 : start + 1 + len(logits)], logits

    def measured(self, measure: Callable[[Windows, int], Found]) -> Iterator[Found]:
        """measure(windows, i) of every window i, in order.

        Windows run side by side where there are enough of them, on models with a share of the cores
        over the same weights: the same bits, 7 to 20 % sooner than one after another on two cores.
        `windows` is this one with such a model.
        """
        views = [self._with(model) for model in self.model.split(SIDE_BY_SIDE)]
        whole = len(self.tokens) // len(views) * len(views)
        idle = SimpleQueue[Windows]()
        for view in views:
            idle.put(view)

        def run(index: int) -> Found:
            view = idle.get()
            try:
                return measure(view, index)
            finally:
                idle.put(view)

        with ThreadPoolExecutor(len(views)) as pool:
            try:
                yield from pool.map(run, range(whole))
            finally:
                for view in views:
                    view.stopped = True
        # what is left would leave cores idle
        yield from (measure(self, index) for index in range(whole, len(self.tokens)))

    def _with(self, model: Model) -> Windows:
        view = copy(self)
        view.model = model
        return view

    def _type(self, kind: CacheType) -> CacheType:
        """One page over the first half, every later token exact."""
        half = self.settings.n_ctx // 2
        stored = kind.format
        if stored.page_tokens is not None:
            if half % 32:
                raise InputError(
                    f"context {self.settings.n_ctx}: {kind.name} needs a multiple of 64 for "
                    "protocol pa"
                )
            stored = replace(stored, page_tokens=half)
        return replace(kind, format=stored, page_tokens=half, tail=F32)

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


def bits_per_value(spec: ModelSpec, policy: Policy) -> tuple[float, float]:
    """Bits per value of packed keys and values, metadata and padding included."""
    bits, values = [0.0, 0.0], 0
    for layer, pair in zip(spec.layers, policy.of_layers(len(spec.layers)), strict=True):
        width = layer.attention.head_dim * layer.attention.kv_heads
        values += width
        for side in (0, 1):
            bits[side] += width * pair[side].bits_per_value(layer.attention.head_dim)
    return bits[0] / values, bits[1] / values
