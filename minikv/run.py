"""`minikv run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from engine import Budget, InputError, Model, Sampler, SamplerSpec, Session
from engine.backends import new_ops
from engine.kv.format import Side
from engine.kv.formats import kv_format, side_type
from engine.kv.policy import Policy
from engine.model.archs import spec_of
from engine.model.load import open_checkpoint
from engine.tokenizer import Tokenizer
from minikv.generate import Generation
from minikv.keeping import Keeping, Message, keep_messages, messages_of
from minikv.kernels import announce_compilation
from minikv.progress import TerminalProgress
from minikv.report import as_data, closing_line
from minikv.sources import resolve
from minikv.text import nbytes_of, one_line, size

# More than any context holds, so that an endless pipe is refused and not read for ever.
_MAX_PROMPT = 16 << 20


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it runs.  `n_ctx` and `threads` None mean the model's and the
    machine's own, `budget` None that the cache may take what it likes."""

    model: str
    ctk: str
    ctv: str
    n_ctx: int | None
    threads: int | None
    backend: str
    sink: int = 0
    policy: Policy | None = None  # in the place of ctk, ctv and sink
    pin: bool = False
    budget: Budget | None = None

    @property
    def kv(self) -> Policy:
        """How the cache is stored.  Raises InputError for a name that is no type's."""
        return self.policy or Policy.of(self.ctk, self.ctv, self.sink)

    def load(self) -> Model:
        """The model, downloaded first if need be; whatever can be refused before that is."""
        policy = self.kv
        ops = new_ops(self.backend, self.threads, self.pin)
        checkpoint = open_checkpoint(resolve(self.model, progress=TerminalProgress()))
        of_layers = policy.of_layers(len(spec_of(checkpoint).layers))
        if self.budget is not None:
            for pair in dict.fromkeys(of_layers):
                self.budget.types(*pair)
        model = Model(checkpoint, ops, reads_text=True)
        if sys.stderr.isatty() and self.backend == "cpu":
            announce_compilation(lambda: note("compiling kernels for this CPU, once"))
        pairs = policy.every()
        for line in dict.fromkeys(line for pair in pairs for line in model.cautions(pair)):
            note(line)
        return model

    def session(self, model: Model) -> Session:
        return Session(model, n_ctx=self.n_ctx, policy=self.kv, budget=self.budget)


def budget_of(size: str | None, ctk: str | None, ctv: str | None) -> Budget | None:
    """What `--kv-budget` and the options that go with it ask for.  Raises InputError for what is no
    size or no type."""
    if size is None:
        if ctk is not None or ctv is not None:
            raise InputError("--budget-ctk and --budget-ctv need --kv-budget SIZE")
        return None
    named: dict[Side, str | None] = {"k": ctk, "v": ctv}
    for side, name in named.items():
        if name is not None:
            kv_format(side_type(name, side))
    return Budget(nbytes_of("--kv-budget", size), ctk, ctv)


@dataclass(frozen=True)
class Answering:
    """How prompts become answers.  `limit` is the most tokens of one, None for no limit."""

    sampling: SamplerSpec
    limit: int | None
    system: str | None
    raw: bool

    def completes(self, model: Model, name: str) -> bool:
        """Whether `model` continues plain text: asked to, or because it has no chat template."""
        completes = self.raw or model.tokenizer.chat_template is None
        if completes and self.system is not None:
            why = "--raw is given" if self.raw else f"{name} has no chat template"
            raise InputError(f"--system: {why}, so there is no place for a system message")
        if completes and not self.raw:
            note(f"{name} has no chat template: it completes the text of the prompt")
        return completes


def run(
    choice: ModelChoice,
    answering: Answering,
    prompt: str | None,
    as_json: bool,
    keeping: Keeping,
) -> None:
    """Answer `prompt` on stdout; None or "-" is stdin."""
    text = _utf8(_read_stdin() if prompt in (None, "-") else prompt)
    if not text.strip():
        raise InputError("the prompt is empty")
    with keeping.session(choice) as (model, session):
        completes = answering.completes(model, choice.model)
        turn = [*messages_of(session, answering.system), {"role": "user", "content": text}]
        generation = Generation(
            session,
            model.tokenizer,
            _encode(model.tokenizer, text, completes, turn),
            Sampler(answering.sampling),
            limit=answering.limit,
            continues=completes,
        )
        try:
            if as_json:
                for _ in generation:
                    pass
                print(json.dumps({"model": choice.model} | as_data(generation, session)))
            else:
                show(generation)
                tell_end(generation, session)
        finally:  # an answer that was broken off is part of the conversation, as in a chat
            if generation.text and not completes:
                keep_messages(session, [*turn, {"role": "assistant", "content": generation.text}])


def show(generation: Generation) -> None:
    """Write the text to stdout as it comes, and a line end after it."""
    for piece in generation:
        sys.stdout.write(piece)
        sys.stdout.flush()
    if not generation.text.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()


def tell_end(generation: Generation, session: Session) -> None:
    """The closing lines on stderr."""
    if generation.finish == "context":
        full, after = f"the context of {session.n_ctx} tokens", ""
        if session.cache.budget is not None and session.cache.capacity < session.n_ctx:
            full = f"the KV budget of {size(session.cache.budget)}"
            after = f", after {len(session.tokens)} tokens"
        note(f"{full} is full: the answer ends here{after}")
    print(closing_line(generation, session), file=sys.stderr, flush=True)


def note(line: str) -> None:
    """One line for the user beside the answer."""
    print(f"minikv: {one_line(line)}", file=sys.stderr, flush=True)


def _encode(tokenizer: Tokenizer, text: str, completes: bool, turn: list[Message]) -> list[int]:
    if completes:
        return tokenizer.encode(text, add_special=True, parse_special=True)
    from minikv.templates import encode_chat  # with jinja2, which not every model needs

    return encode_chat(tokenizer, turn)


def _read_stdin() -> str:
    """All of stdin as UTF-8, its last line end dropped."""
    data = sys.stdin.buffer.read(_MAX_PROMPT + 1)
    if len(data) > _MAX_PROMPT:
        raise InputError(f"the prompt on stdin is longer than {_MAX_PROMPT >> 20} MiB")
    return data.decode("utf-8", errors="surrogateescape").removesuffix("\n")


def _utf8(text: str) -> str:
    """`text` with U+FFFD for what was not UTF-8 in a pipe or an argument, and a note of it."""
    readable = text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
    if readable != text:
        note("the prompt is not UTF-8: bytes that are not count as U+FFFD")
    return readable
