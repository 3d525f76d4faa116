"""Text as it comes: token by token, never half a character."""

from __future__ import annotations

import codecs

from engine.tokenizer.base import Tokenizer


class StreamDecoder:
    """Turns ids into text one at a time.

    The texts returned by `push` and the last `flush`, joined, equal `tokenizer.decode` of all the
    ids.  Bytes of an incomplete character wait; invalid ones become U+FFFD.  Set `at_start` to
    False when the ids continue an earlier text, so that the space before a first word stays.
    """

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = at_start

    def push(self, id: int) -> str:
        """The text that became certain with this token; often a word, sometimes nothing."""
        (piece,) = self._tokenizer.pieces([id], at_start=self._at_start)
        self._at_start = self._at_start and not self._tokenizer.token_bytes(id)
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left of an incomplete character, at the end."""
        return self._utf8.decode(b"", final=True)
