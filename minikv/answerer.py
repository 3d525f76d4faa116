"""A model in this process that answers one user message after another, for the recall tools."""

from __future__ import annotations

from typing import Any

from engine import InputError, Model, Sampler, SamplerSpec
from minikv.generate import Generation
from minikv.run import ModelChoice
from minikv.templates import encode_chat
from minikv.text import kv_data
from tools.ppl import files_sha256
from tools.recall.answer import Answer, NoAnswer
from tools.recall.prompt import EMPTY_THINK
from tools.windows import bits_per_value


class EngineAnswerer:
    """Greedy answers of at most `limit` tokens, all through one session.

    Messages that begin alike are read once: the session keeps the keys and values they share.  A
    model without a chat template `completes` the message as text.  With `prefill_no_think` the
    answer begins after an empty think block.  `model` is that of `choice`, if already loaded.
    """

    def __init__(
        self, choice: ModelChoice, limit: int, prefill_no_think: bool, model: Model | None = None
    ) -> None:
        self._choice, self._limit, self._no_think = choice, limit, prefill_no_think
        self._model = model or choice.load()
        self._session = choice.session(self._model)
        self.completes = self._model.tokenizer.chat_template is None

    @property
    def about(self) -> dict[str, Any]:
        choice = self._choice
        bits_k, bits_v = bits_per_value(self._model.spec, choice.kv)
        stored = kv_data(choice)
        if not stored["sink"]:
            del stored["sink"]  # dumps without them go on
        return {
            "model": choice.model,
            "model_sha256": files_sha256(self._model.checkpoint.paths),
            **stored,
            "bits_k": round(bits_k, 4),
            "bits_v": round(bits_v, 4),
            "backend": choice.backend,
            "chat_template": not self.completes,
            "max_tokens": self._limit,
            "temperature": 0,
            "prefill_no_think": self._no_think,
        }

    def count(self, message: str) -> int:
        """The tokens of `message` with all that the chat template puts around it."""
        return len(self._encode(message))

    def check(self, message: str) -> int:
        """The tokens of `message`.  Raises InputError when the context does not hold them."""
        n, n_ctx = self.count(message), self._session.n_ctx
        if n >= n_ctx:
            raises = " or raise -c" if n_ctx < self._model.spec.n_ctx_train else ""
            raise InputError(
                f"the corpus with its task has {n} tokens, the context only {n_ctx}; "
                f"take a shorter corpus{raises}"
            )
        return n

    def __call__(self, message: str) -> Answer:
        ids, n_ctx = self._encode(message), self._session.n_ctx
        if len(ids) > n_ctx:
            raise NoAnswer(f"the prompt has {len(ids)} tokens, the context only {n_ctx}")
        generation = Generation(
            self._session,
            self._model.tokenizer,
            ids,
            Sampler(SamplerSpec(temp=0)),
            limit=self._limit,
            continues=self.completes,
        )
        for _ in generation:
            pass
        if generation.finish == "context":
            n = len(generation.tokens)
            raise NoAnswer(f"the context of {n_ctx} tokens is full after {n} of the answer")
        return Answer(
            generation.text,
            generation.finish,
            tokens=len(generation.tokens),
            prompt_tokens=len(ids),
            cached_tokens=generation.cached_tokens,
            seconds=round(generation.prompt_seconds + generation.decode_seconds, 3),
        )

    def _encode(self, message: str) -> list[int]:
        tokenizer = self._model.tokenizer
        if self.completes:
            ids = tokenizer.encode(message, add_special=True)
        else:
            ids = encode_chat(tokenizer, [{"role": "user", "content": message}])
        return ids + (tokenizer.encode(EMPTY_THINK, parse_special=True) if self._no_think else [])
