"""Who answers: a model in this process or behind a server, one and the same to the harness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Answer:
    """`text` is verbatim.  `finish` is why it ended, "length" or "stop"; counts are None where a
    server does not tell them."""

    text: str
    finish: str
    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    seconds: float | None = None


class NoAnswer(Exception):
    """One target got no answer that could be scored: an error, not a failure to recall.

    The message is one line.
    """


class Answerer(Protocol):
    """`about` is all that decides its answers, as JSON values; equal ones may share a dump."""

    @property
    def about(self) -> dict[str, Any]: ...

    def __call__(self, message: str) -> Answer:
        """The answer to one user message.

        Raises NoAnswer when this message cannot be answered, InputError when none can.
        """
        ...
