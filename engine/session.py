"""A session: one sequence of tokens and its KV cache.  Everything that changes lives here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.kv.budget import Budget
from engine.kv.cache import CacheType
from engine.kv.format import Side
from engine.kv.formats import BF16, kv_format, side_type
from engine.kv.policy import Policy
from engine.kv.snapshot import open_snapshot, save_cache
from engine.model.decoder import CHUNK, Decoder
from engine.ops import Array
from engine.saved import check_model, identity, saved_budget, saved_contents


class Session:
    """`tokens` are those whose keys and values are cached.

    `ctk` and `ctv` are KV cache types, by name or as a CacheType; the first `sink` tokens of named
    types stay exact.  Instead of these, `policy` says how each layer stores them.  `n_ctx` is the
    most tokens the session can hold, by default the context the model was trained for.  With a
    `budget` the cache stays within its bytes: the oldest pages are packed into its types.  Raises
    InputError for an unknown type or a number out of range.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        n_ctx: int | None = None,
        ctk: str | CacheType = "bf16",
        ctv: str | CacheType = "bf16",
        sink: int = 0,
        policy: Policy | None = None,
        budget: Budget | None = None,
    ) -> None:
        limit = decoder.spec.n_ctx_train
        n_ctx = limit if n_ctx is None else n_ctx
        if not 0 < n_ctx <= limit:
            raise InputError(f"context of {n_ctx} tokens: the model takes 1 to {limit}")
        n = len(decoder.spec.layers)
        pairs = [(_cache_type(ctk, "k", sink), _cache_type(ctv, "v", sink))] * n
        if policy is not None:
            pairs = policy.of_layers(n)
        self.decoder, self.n_ctx = decoder, n_ctx
        nbytes = None
        if budget is not None:
            pairs, nbytes = [budget.types(*pair) for pair in pairs], budget.nbytes
        self.cache = decoder.new_cache(pairs, n_ctx, nbytes)
        self.tokens: list[int] = []
        self.notes: dict[str, Any] = {}  # the caller's, JSON, saved with the session

    @classmethod
    def restore(
        cls,
        decoder: Decoder,
        path: str | Path,
        *,
        n_ctx: int | None = None,
        ctk: str | CacheType | None = None,
        ctv: str | CacheType | None = None,
        sink: int | None = None,
        policy: Policy | None = None,
        budget: Budget | None = None,
    ) -> Session:
        """The session that `save` wrote, as if it had never left: what is not given is as it was.

        Types that are not the saved ones need pages of the same length; those are then packed anew.
        `sink` can only be what it was, since pages begin behind the sinks.  Pages that a budget has
        made smaller stay so.

        Raises InputError with one line if the file is damaged or of another version, or if the
        model, the context or the types do not fit.
        """
        with open_snapshot(path) as saved:
            check_model(saved, decoder)
            if sink is not None:
                saved.check_sink(sink)
            pairs = [
                (_going_on(ctk, "k", k), _going_on(ctv, "v", v))
                for k, v in saved.types[: len(decoder.spec.layers)]
            ]
            session = cls(
                decoder,
                n_ctx=saved.n_ctx if n_ctx is None else n_ctx,
                policy=policy or Policy.by_layer(pairs),
                budget=saved_budget(saved, budget, kept=policy is None),
            )
            session.tokens, session.notes = saved_contents(saved, decoder.spec.n_vocab)
            saved.fill(session.cache)
        return session

    def save(self, path: str | Path) -> None:
        """Write the session to a file for `restore`, which is replaced only by a whole new one.

        Raises InputError if the file cannot be written.
        """
        about = {"model": identity(self.decoder), "tokens": self.tokens, "notes": self.notes}
        save_cache(path, self.cache, about)

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Append `tokens` and return the logits float32 [n_vocab] that follow the last one."""
        if len(tokens) == 1:
            return self._step(tokens[0])
        last = None
        for _, hidden in self._forward(tokens):
            last = hidden[-1:]
        if last is None:
            raise InputError("no tokens: the model needs at least one to continue from")
        return self._logits(last)[0]

    def _step(self, token: int) -> np.ndarray:
        self._check((token,))
        try:
            logits = self.decoder.step(token, self.cache)
            self.tokens.append(token)
        except BaseException:
            self._undo()
            raise
        return logits

    def rewind(self, tokens: Sequence[int]) -> Sequence[int]:
        """Keep what the cache holds of the sequence `tokens`; returns the rest, to be extended by.

        Page formats fall back to a page boundary, and the last token is always part of the rest:
        its logits were not kept.  So a growing conversation costs only its new tokens.
        """
        keep = min(self._shared_prefix(tokens), max(len(tokens) - 1, 0))
        if keep < len(self.tokens):
            self.truncate(keep)
        return tokens[len(self.tokens) :]

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Append `tokens`, yielding (i, logits [n, n_vocab]) that follow tokens i..i+n, i >= first.

        Logits come in pieces of at most 128 tokens, so memory does not grow with the sequence.
        """
        piece = 128
        for start, hidden in self._forward(tokens):
            for i in range(max(start, first), start + hidden.shape[0], piece):
                rows = hidden[i - start : i - start + piece]
                yield i, self._logits(rows)

    def _shared_prefix(self, tokens: Sequence[int]) -> int:
        """How many leading tokens of `tokens` are the session's own."""
        pairs = zip(self.tokens, tokens, strict=False)
        different = (i for i, (mine, other) in enumerate(pairs) if mine != other)
        return next(different, min(len(self.tokens), len(tokens)))

    def truncate(self, n: int) -> None:
        """Forget the tokens from `n` on, and those that share a sealed page with token `n`."""
        try:
            n = self.cache.truncate(n)
        except BaseException:  # Ctrl-C, say
            n = self.cache.n
            raise
        finally:
            del self.tokens[n:]

    def _forward(self, tokens: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Append `tokens` chunk by chunk, yielding (start, hidden states [n, n_embd])."""
        self._check(tokens)
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            try:
                hidden = self.decoder.forward(np.asarray(chunk, np.int32), self.cache)
                self.tokens.extend(chunk)
            except BaseException:
                self._undo()
                raise
            yield start, hidden

    def _check(self, tokens: Sequence[int]) -> None:
        vocab = self.decoder.spec.n_vocab
        for token in tokens:
            if not 0 <= token < vocab:
                raise InputError(f"token id {token} is outside the vocabulary, 0 to {vocab - 1}")
        self.cache.check_room(len(tokens))

    def _logits(self, hidden: Array) -> np.ndarray:
        return self.decoder.ops.to_host(self.decoder.logits(hidden))

    def _undo(self) -> None:
        """Go back after an error: some layers may have taken the chunk and others not."""
        self.decoder.ops.discard()
        self.truncate(len(self.tokens))


def _cache_type(kind: str | CacheType, side: Side, sink: int) -> CacheType:
    if isinstance(kind, CacheType):
        return kind
    return CacheType.of(kv_format(side_type(kind, side)), sink)


def _going_on(kind: str | CacheType | None, side: Side, saved: CacheType) -> CacheType:
    """The type of a restored side: a named one has the sinks, the exact window and the smaller type
    of the saved."""
    if kind is None:
        return saved
    if isinstance(kind, CacheType):
        return kind
    found, tail = kv_format(side_type(kind, side)), saved.tail or BF16
    new = CacheType.of(found, saved.sink, tail, saved.recent)
    return new if new.format == saved.small else replace(new, small=saved.small)
