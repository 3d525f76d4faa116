"""The token loop: from a prompt's ids to the text of the answer, piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from engine import InputError, Sampler, Session
from engine.session import CHUNK
from engine.tokenizer import StreamDecoder, Tokenizer

Finish = Literal["stop", "length", "context", "interrupted"]


class Generation:
    """One answer.  Iterate once for its text as it comes, in whole characters.

    `prompt` is the whole sequence to continue: what the session already holds of it is not read
    again.  `limit` is the most tokens to generate, None for as many as the context takes.
    `continues` says that the answer goes on in the middle of a text, so that the space before its
    first word counts.  Raises InputError when the prompt does not fit the session's context.

    Afterwards `tokens` are the ids generated, the one that ended the answer not among them, `text`
    their text, and `finish` why it ended: "stop" the model was done, "length" the limit, "context"
    no room left, there or in the budget, "interrupted" by `stop`.  Seconds count the model and the
    sampler, not the reader.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        limit: int | None = None,
        continues: bool = False,
    ) -> None:
        if len(prompt) > session.n_ctx:
            raise InputError(
                f"the prompt has {len(prompt)} tokens, the context only {session.n_ctx}; "
                "shorten it or raise -c"
            )
        capacity = session.cache.capacity
        if len(prompt) > capacity:
            raise InputError(
                f"the prompt has {len(prompt)} tokens, the KV budget takes {capacity}; "
                "shorten it or raise --kv-budget"
            )
        self._session, self._prompt, self._sampler = session, prompt, sampler
        self._end_ids, self._limit = tokenizer.end_ids, limit
        self._decoder = StreamDecoder(tokenizer, at_start=not continues)
        self._stopped = False
        self.finish: Finish = "interrupted"
        self.tokens: list[int] = []
        self.text = ""
        self.cached_tokens = self.prompt_tokens = self.decode_steps = 0
        self.prompt_seconds = self.decode_seconds = 0.0

    def stop(self) -> None:
        """End the answer after the token, or the piece of the prompt, that is being worked on.

        May be called from a signal handler or another thread.
        """
        self._stopped = True

    def __iter__(self) -> Iterator[str]:
        for token in self._ids():
            piece = self._decoder.push(token)
            self.text += piece
            if piece:
                yield piece
        if rest := self._decoder.flush():
            self.text += rest
            yield rest

    def _ids(self) -> Iterator[int]:
        logits = self._read_prompt()
        while logits is not None:
            start = time.perf_counter()
            token = self._sampler.sample(logits, self._session.tokens)
            self.decode_seconds += time.perf_counter() - start
            if token in self._end_ids:
                self.finish = "stop"
                return
            self.tokens.append(token)
            yield token
            if self._stopped:
                return
            if len(self.tokens) == self._limit:
                self.finish = "length"
                return
            if len(self._session.tokens) == self._session.cache.capacity:
                self.finish = "context"
                return
            start = time.perf_counter()
            logits = self._session.extend([token])
            self.decode_seconds += time.perf_counter() - start
            self.decode_steps += 1

    def _read_prompt(self) -> np.ndarray | None:
        """The logits after the prompt, or None if stopped on the way."""
        session, logits = self._session, None
        start = time.perf_counter()
        unread = session.rewind(self._prompt)
        self.cached_tokens = len(session.tokens)
        for first in range(0, len(unread), CHUNK):
            if self._stopped:
                return None
            logits = session.extend(unread[first : first + CHUNK])
            self.prompt_tokens = len(session.tokens) - self.cached_tokens
            self.prompt_seconds = time.perf_counter() - start
        return logits
