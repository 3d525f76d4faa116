"""The harness: ask for one function after another and keep what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.recall.answer import Answer, Answerer, NoAnswer
from tools.recall.corpus import Corpus
from tools.recall.dump import Dump
from tools.recall.function import BONUS, PRIMARY, Function
from tools.recall.outcome import Outcome
from tools.recall.prompt import message, task
from tools.recall.scoring import produced_text


def identity(
    sources: Sequence[str], corpus: Corpus, k: int, seed: int, about: dict[str, Any]
) -> dict[str, Any]:
    """All that decides the answers of a run, as JSON values; `about` is the answerer's part."""
    return {
        "corpus": {
            "sources": list(sources),
            "language": corpus.language.name,
            "files": list(corpus.files),
            "lines": corpus.lines,
            "bytes": len(corpus.text.encode()),
            "sha256": corpus.sha256,
            "functions": len(corpus.functions),
        },
        "sampling": {"k": k, "seed": seed},
        "prompt": {"primary_lines": PRIMARY, "bonus_lines": BONUS},
        "answerer": about,
    }


def settle(
    corpus: Corpus, target: Function, answerer: Answerer, dump: Dump, path: Path | None
) -> Outcome:
    """What comes of `target`, also put into `dump` and, if given, the file `path`.

    An answer that `dump` already has is not asked for again.
    """
    outcome = dump.answered(target) or ask(corpus, target, answerer)
    dump.add(outcome)
    if path is not None:
        dump.save(path)
    return outcome


def ask(corpus: Corpus, target: Function, answerer: Answerer) -> Outcome:
    """What comes of asking for `target`, once."""
    asked = task(corpus, target)
    try:
        answer = answerer(message(corpus, target))
    except NoAnswer as error:
        return Outcome(target, asked, error=str(error))
    return Outcome(target, asked, answer, _fault(answer))


def _fault(answer: Answer) -> str | None:
    """Why `answer` cannot be scored, if so."""
    return None if produced_text(answer.text).strip() else f"empty answer ({answer.finish})"
