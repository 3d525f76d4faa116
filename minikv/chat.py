"""`minikv run` without a prompt on a terminal: a conversation."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from engine import InputError, Model, Sampler, Session
from minikv.generate import Generation
from minikv.keeping import Keeping, Message, keep_messages, messages_of
from minikv.run import Answering, ModelChoice, note, show, tell_end
from minikv.templates import encode_chat

_HELP = "/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


def chat(choice: ModelChoice, answering: Answering, keeping: Keeping) -> None:
    """Answer line after line from the terminal until the user leaves."""
    with keeping.session(choice) as (model, session):
        conversation = Conversation(model, session, answering, choice.model)
        note(_HELP)
        _talk(conversation)


def _talk(conversation: Conversation) -> None:
    while (line := _ask()) is not None:
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/help"):
            note(_HELP)
        elif line in ("/quit", "/exit"):
            return
        elif line.strip():
            conversation.answer(line)


class Conversation:
    """The messages so far and the session that has read them.

    Every turn hands the whole conversation to the session, which keeps what it has already read.
    A model that completes text has no memory: each line is a text of its own.
    """

    def __init__(self, model: Model, session: Session, answering: Answering, name: str) -> None:
        self._tokenizer, self._session, self._answering = model.tokenizer, session, answering
        self._completes = answering.completes(model, name)
        # one stream of choices for the whole conversation: a seed fixes all of it
        self._sampler = Sampler(answering.sampling)
        self._messages = messages_of(session, answering.system)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._remember([m for m in self._messages[:1] if m["role"] == "system"])

    def answer(self, line: str) -> None:
        """Show the answer to `line`; an error is told and the turn forgotten."""
        turn = [*self._messages, {"role": "user", "content": line}]
        try:
            generation = self._generation(line, turn)
            with _stopped_by_interrupt(generation):
                show(generation)
        except InputError as error:
            note(f"{error} (/reset forgets the conversation)")
            return
        tell_end(generation, self._session)
        if generation.text and not self._completes:
            self._remember([*turn, {"role": "assistant", "content": generation.text}])

    def _remember(self, messages: list[Message]) -> None:
        self._messages = messages
        keep_messages(self._session, messages)

    def _generation(self, line: str, turn: list[dict[str, str]]) -> Generation:
        if self._completes:
            ids = self._tokenizer.encode(line, add_special=True, parse_special=True)
        else:
            ids = encode_chat(self._tokenizer, turn)
        return Generation(
            self._session,
            self._tokenizer,
            ids,
            self._sampler,
            limit=self._answering.limit,
            continues=self._completes,
        )


def _ask() -> str | None:
    """One line from the user, None when they leave."""
    with suppress(ImportError):  # not part of every Python
        import readline  # noqa: F401  gives input() a history and editing
    try:
        return input("> " if sys.stdout.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return None


@contextmanager
def _stopped_by_interrupt(generation: Generation) -> Iterator[None]:
    """Make Ctrl-C end the answer between two tokens, where the session is whole."""
    before = signal.signal(signal.SIGINT, lambda *_: generation.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
