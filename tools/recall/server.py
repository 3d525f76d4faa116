"""Answers from a server that speaks OpenAI's chat completions."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from engine.errors import InputError
from tools.recall.answer import Answer, NoAnswer
from tools.recall.prompt import EMPTY_THINK

_MAX_REPLY = 64 << 20  # bytes
_REFUSALS = (401, 403, 404, 405)  # what no other message would change


@dataclass(frozen=True)
class Server:
    """The model called `model` at `base_url`, with or without its /v1.

    `limit` is the most tokens of an answer.  A reply that takes longer than `timeout` seconds is an
    error.  With `prefill_no_think` the assistant's turn begins with an empty think block, which the
    server must be able to continue.  `api_key` goes along as a bearer token; nothing here tells it.
    Raises InputError for a URL that is none and a key that no header can hold.
    """

    base_url: str
    model: str
    limit: int
    prefill_no_think: bool = False
    timeout: float = 1800.0
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise InputError(
                f"--base-url {self.base_url}: not a server; give http://HOST:PORT or https://..."
            )
        key = self.api_key
        if key is not None and not (key.isascii() and key.isprintable() and key.split() == [key]):
            raise InputError("--api-key: must be printable ASCII characters without spaces")

    @property
    def about(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "model": self.model,
            "max_tokens": self.limit,
            "temperature": 0,
            "prefill_no_think": self.prefill_no_think,
        }

    def __call__(self, message: str) -> Answer:
        messages = [{"role": "user", "content": message}]
        if self.prefill_no_think:
            messages.append({"role": "assistant", "content": EMPTY_THINK})
        request = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.limit,
            "stream": False,
        }
        start = time.perf_counter()
        reply = _json(self._post(json.dumps(request).encode()))
        return _answer(reply, round(time.perf_counter() - start, 3))

    def _post(self, body: bytes) -> bytes:
        url = self.base_url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        headers = {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(url, body, headers)
            if self.api_key is not None:
                # unredirected: another host that we are sent to does not get it
                request.add_unredirected_header("Authorization", f"Bearer {self.api_key}")
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return reply.read(_MAX_REPLY + 1)
        except urllib.error.HTTPError as error:
            told = f"HTTP {error.code}: {_complaint(error)}"
            if error.code in _REFUSALS:
                raise InputError(f"{url}: {told}") from None
            raise NoAnswer(told) from None
        except TimeoutError:
            raise NoAnswer(f"no reply within {self.timeout:g} seconds") from None
        except urllib.error.URLError as error:
            raise InputError(f"{url}: cannot be reached: {error.reason}") from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise NoAnswer(f"broken reply: {error or type(error).__name__}") from None


def _answer(reply: Any, seconds: float) -> Answer:
    try:
        choice = reply["choices"][0]
        text, finish = choice["message"].get("content") or "", choice.get("finish_reason")
        usage = reply.get("usage") or {}
        counts = usage.get("completion_tokens"), usage.get("prompt_tokens")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise NoAnswer(f"not a chat completion: {reply!s:.100}") from None
    if not isinstance(text, str):
        raise NoAnswer(f"not a chat completion: content {text!s:.100}")
    return Answer(text, str(finish), *counts, cached, seconds)


def _json(data: bytes) -> Any:
    if len(data) > _MAX_REPLY:
        raise NoAnswer(f"the reply is longer than {_MAX_REPLY >> 20} MiB")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise NoAnswer(f"the reply is not JSON: {data[:100]!r}") from None


def _complaint(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong, in one line."""
    try:
        text = error.read(4096).decode(errors="replace")
    except OSError:
        return error.reason
    try:
        told = json.loads(text)["error"]
        text = told["message"] if isinstance(told, dict) else str(told)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:300] or error.reason
