"""`--session FILE`: a conversation, and the cache that has read it, kept between commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import InputError, Model, Session

if TYPE_CHECKING:
    from minikv.run import ModelChoice

Message = dict[str, str]


@dataclass(frozen=True)
class Keeping:
    """Where a session is kept, None for nowhere, and the cache types and sinks asked for, None
    where the file's own are to stay."""

    path: Path | None = None
    ctk: str | None = None
    ctv: str | None = None
    sink: int | None = None

    @contextmanager
    def session(self, choice: ModelChoice) -> Iterator[tuple[Model, Session]]:
        """The model, and a session that is saved at the end, however the body ends.

        Raises InputError, before the model is loaded, for a file that could not be written.
        """
        path = self.path
        if path is not None:
            _check_writable(path)
        model = choice.load()
        if path is None or not path.exists():
            session = choice.session(model)
        else:
            session = Session.restore(
                model,
                path,
                n_ctx=choice.n_ctx,
                ctk=self.ctk,
                ctv=self.ctv,
                sink=self.sink,
                policy=choice.policy,
                budget=choice.budget,
            )
        try:
            yield model, session
        finally:
            if path is not None and session.tokens:
                session.save(path)


def messages_of(session: Session, system: str | None) -> list[Message]:
    """The conversation so far: what was kept with the session, or the system message alone.

    Raises InputError if `system` is not the one the kept conversation began with.
    """
    kept = session.notes.get("messages", [])
    if not (isinstance(kept, list) and all(_is_message(message) for message in kept)):
        raise InputError("the session file has notes that are not a conversation of minikv")
    if not kept:
        return [] if system is None else [{"role": "system", "content": system}]
    begun = kept[0]["content"] if kept[0]["role"] == "system" else None
    if system not in (None, begun):
        raise InputError(
            "--system: the conversation in the session file began "
            + ("without a system message" if begun is None else "with another one")
        )
    return list(kept)


def keep_messages(session: Session, messages: list[Message]) -> None:
    """Let the conversation be saved with the session."""
    session.notes["messages"] = messages


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in value.values())
    )


def _check_writable(path: Path) -> None:
    folder = path.resolve().parent
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise InputError(f"--session {path}: not a file")
    if not folder.is_dir():
        raise InputError(f"--session {path}: no such folder: {folder}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--session {path}: the folder {folder} is not writable")
