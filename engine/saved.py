"""What a session's file says beside the cache: the model, the tokens, the caller's notes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.kv.budget import Budget
from engine.kv.snapshot import Snapshot
from engine.model.decoder import Decoder


def identity(decoder: Decoder) -> dict[str, Any]:
    """What tells models apart, for a reader in the order that tells most."""
    spec, metadata = decoder.spec, decoder.checkpoint.metadata
    return {
        "name": metadata.str("general.name", ""),
        "arch": spec.arch,
        "layers": len(spec.layers),
        "n_embd": spec.n_embd,
        "n_vocab": spec.n_vocab,
        "fingerprint": decoder.checkpoint.fingerprint(),
    }


def check_model(saved: Snapshot, decoder: Decoder) -> None:
    """Raise InputError, naming the first difference, unless `saved` is of the decoder's model."""
    model = saved.about.get("model")
    model = model if isinstance(model, dict) else {}
    for name, own in identity(decoder).items():
        if model.get(name) != own:
            raise saved.refused(
                f"saved with another model: its {name} is {model.get(name)!r:.70}, this one's is "
                f"{own!r:.70}"
            )


def saved_budget(saved: Snapshot, asked: Budget | None, kept: bool) -> Budget | None:
    """The budget to go on with: what is not asked for is as it was, smaller types if they are
    `kept`."""
    if saved.budget is None:
        return asked
    return replace(asked or Budget(saved.budget), kept=kept)


def saved_contents(saved: Snapshot, n_vocab: int) -> tuple[list[int], dict[str, Any]]:
    """Tokens and notes.  Raises InputError for what `Session.save` would not write."""
    tokens, notes = saved.about.get("tokens"), saved.about.get("notes")
    if not (isinstance(tokens, list) and len(tokens) == saved.n and isinstance(notes, dict)):
        raise saved.refused(f"it lacks notes, or a token for each of its {saved.n} positions")
    if not all(type(token) is int and 0 <= token < n_vocab for token in tokens):
        raise saved.refused(f"it has tokens outside the vocabulary, 0 to {n_vocab - 1}")
    return tokens, notes
