"""What `minikv recall` does: ask, show each target as it comes, and keep the record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from engine import InputError
from minikv.answerer import EngineAnswerer
from minikv.run import ModelChoice, note
from minikv.text import command_line, one_line
from tools.json_file import check_writable
from tools.recall import dump as dumps
from tools.recall.answer import Answerer
from tools.recall.corpus import Corpus, load
from tools.recall.dump import Dump
from tools.recall.prompt import message
from tools.recall.random_bodies import RandomBodies
from tools.recall.report import conclusion, diff
from tools.recall.run import identity, settle
from tools.recall.sampling import sample
from tools.recall.server import Server

RANDOM_BODIES = "random-bodies"
_TOLD = ("model", "model_sha256", "ctk", "ctv", "bits_k", "bits_v")


@dataclass(frozen=True)
class Asking:
    """Of what, how much and how: what the command line says beside the model.

    `knobs` are those of random bodies that were given.
    """

    sources: Sequence[str]
    knobs: dict[str, int]
    k: int
    seed: int
    limit: int
    prefill_no_think: bool
    relax_indent: bool

    def corpus(self) -> Corpus:
        """Raises InputError when there is nothing to ask for."""
        if list(self.sources) == [RANDOM_BODIES]:
            return RandomBodies(seed=self.seed, **self.knobs).corpus()
        if RANDOM_BODIES in self.sources:
            raise InputError(f"{RANDOM_BODIES} is a corpus of its own; give no files beside it")
        if self.knobs:
            name = next(iter(self.knobs)).replace("_", "-")
            raise InputError(f"--{name} is a knob of {RANDOM_BODIES}, not of {self.sources[0]}")
        return load(self.sources)

    def engine(self, choice: ModelChoice) -> EngineAnswerer:
        return EngineAnswerer(choice, self.limit, self.prefill_no_think)

    def server(self, base_url: str, model: str, timeout: float, api_key: str | None) -> Server:
        return Server(base_url, model, self.limit, self.prefill_no_think, timeout, api_key)


def run(asking: Asking, connect: Callable[[], Answerer], path: Path | None, as_json: bool) -> None:
    """Ask for the sampled functions, show what comes, and keep it in the dump `path`.

    `connect` loads the model; it is called when all that costs nothing has been checked.
    """
    corpus = asking.corpus()
    targets = sample(corpus, asking.k, asking.seed)
    if path is not None:
        _check_dump(path)
    answerer = connect()
    dump = _dump(asking, corpus, answerer.about, path)
    todo = [target for target in targets if dump.answered(target) is None]
    if todo and isinstance(answerer, EngineAnswerer):
        tokens = answerer.check(message(corpus, todo[0]))
        note(f"{len(todo)} of {len(targets)} targets to ask for, each with {tokens} tokens")
    console = Console(highlight=False, soft_wrap=True)
    try:
        for number, target in enumerate(targets, 1):
            note(f"[{number}/{len(targets)}] {target.name}")
            outcome = settle(corpus, target, answerer, dump, path)
            if not as_json:
                console.print(diff(outcome, asking.relax_indent), end="\n\n")
    except BaseException:
        if path is not None:
            done = sum(dump.answered(target) is not None for target in targets)
            note(f"{path} keeps {done} of {len(targets)} targets; run this again to go on")
        raise
    _conclude(dump, as_json)


def rescore(path: Path, relax_indent: bool, as_json: bool) -> None:
    """Score the answers in the dump `path` anew; the file stays as it is."""
    dump = dumps.load(path)
    dump.relax_indent = relax_indent
    if not as_json:
        console = Console(highlight=False, soft_wrap=True)
        for outcome in dump.outcomes:
            console.print(diff(outcome, relax_indent), end="\n\n")
    _conclude(dump, as_json)


def _check_dump(path: Path) -> None:
    """Refuse a file that is no dump, or could not be written, before a model is loaded."""
    if os.path.lexists(path):
        dumps.load(path)
    else:
        check_writable(path)


def _dump(asking: Asking, corpus: Corpus, about: dict[str, Any], path: Path | None) -> Dump:
    """The record to write into, with what `path` already holds of this run."""
    sources = [*asking.sources, *(f"--{name}={value}" for name, value in asking.knobs.items())]
    run = identity(sources, corpus, asking.k, asking.seed, about)
    dump = Dump(run, command_line(), asking.relax_indent)
    if path is not None:
        dump = dumps.resume(path, dump)
        dump.save(path)
    return dump


def _conclude(dump: Dump, as_json: bool) -> None:
    summary = dump.summary
    if as_json:
        print(json.dumps(dump.as_data()))
    else:
        print(_who(dump.run["answerer"]))
        print(conclusion(summary))
    if summary.errors == summary.targets:
        error = dump.outcomes[0].error if dump.outcomes else "the dump holds no targets"
        raise InputError(f"no target was answered: {error}")


def _who(about: dict[str, Any]) -> str:
    """Who answered, in one line."""
    if "base_url" in about:
        return one_line(f"{about.get('model')} at {about['base_url']}")
    told = {name: str(about.get(name)) for name in _TOLD}
    return one_line(
        "{model}, sha256 {model_sha256}; KV {ctk}/{ctv}: {bits_k}/{bits_v} bits per value".format(
            **told
        )
    )
