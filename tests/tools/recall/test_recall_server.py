"""A server is asked as OpenAI's API says, and whatever it replies is an answer or one line."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from engine import InputError
from tools.recall.answer import Answer, NoAnswer
from tools.recall.server import Server

COMPLETION = {
    "choices": [{"message": {"content": "    a\n    b"}, "finish_reason": "length"}],
    "usage": {
        "completion_tokens": 5,
        "prompt_tokens": 90,
        "prompt_tokens_details": {"cached_tokens": 80},
    },
}


class Peer(ThreadingHTTPServer):
    """Replies `status` and `reply` to everything and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.reply, self.delay = 200, json.dumps(COMPLETION).encode(), 0.0
        self.asked: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []  # what stood in Authorization
        self.elsewhere: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        pass  # a client that did not wait


class _Handler(BaseHTTPRequestHandler):
    @property
    def peer(self) -> Peer:
        assert isinstance(self.server, Peer)
        return self.server

    def do_POST(self) -> None:
        peer = self.peer
        body = self.rfile.read(int(self.headers["Content-Length"]))
        peer.asked.append((self.path, json.loads(body)))
        peer.keys.append(self.headers["Authorization"])
        time.sleep(peer.delay)
        if peer.status == 0:  # hangs up
            return
        self.send_response(peer.status)
        if peer.elsewhere is not None:
            self.send_header("Location", peer.elsewhere)
        self.send_header("Content-Length", str(len(peer.reply)))
        self.end_headers()
        self.wfile.write(peer.reply)

    def do_GET(self) -> None:  # what a redirected request becomes
        self.peer.keys.append(self.headers["Authorization"])
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_one_user_message_goes_to_chat_completions(peer: Peer, suffix: str) -> None:
    answer = Server(peer.url + suffix, "m", 100)("source and task")
    assert peer.asked == [
        (
            "/v1/chat/completions",
            {
                "model": "m",
                "messages": [{"role": "user", "content": "source and task"}],
                "temperature": 0,
                "max_tokens": 100,
                "stream": False,
            },
        )
    ]
    assert answer.seconds is not None and answer.seconds >= 0
    assert answer == Answer("    a\n    b", "length", 5, 90, 80, answer.seconds)


def test_an_empty_think_block_begins_the_assistants_turn_if_asked_for(peer: Peer) -> None:
    Server(peer.url, "m", 100, prefill_no_think=True)("x")
    last = peer.asked[0][1]["messages"][-1]
    assert last == {"role": "assistant", "content": "<think>\n\n</think>\n\n"}


def test_a_key_goes_along_as_a_bearer_token_and_stays_out_of_sight(peer: Peer) -> None:
    server = Server(peer.url, "m", 100, api_key="s3cret")
    server("x")
    Server(peer.url, "m", 100)("x")
    assert peer.keys == ["Bearer s3cret", None]
    assert "s3cret" not in f"{server} {server.about}"


def test_a_key_does_not_follow_a_redirection(peer: Peer) -> None:
    with Peer() as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        peer.status, peer.elsewhere = 302, other.url
        with pytest.raises(InputError, match="404"):
            Server(peer.url, "m", 100, api_key="s3cret")("x")
        other.shutdown()
    assert (peer.keys, other.keys) == (["Bearer s3cret"], [None])


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "\n", "clé", "a\x1b"])
def test_a_key_that_no_header_can_hold_is_refused_untold(key: str) -> None:
    with pytest.raises(InputError) as caught:
        Server("http://h", "m", 100, api_key=key)
    assert str(caught.value) == "--api-key: must be printable ASCII characters without spaces"


def test_a_reply_needs_no_usage_and_may_be_empty(peer: Peer) -> None:
    peer.reply = b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'
    answer = Server(peer.url, "m", 100)("x")
    assert (answer.text, answer.tokens) == ("", None)


@pytest.mark.parametrize(
    ("status", "reply", "told"),
    [
        (400, b'{"error": {"message": "context\\nexceeded"}}', "HTTP 400: context exceeded"),
        (500, b"oops", "HTTP 500: oops"),
        (503, b"", "HTTP 503: Service Unavailable"),
        (200, b"<html>", "the reply is not JSON"),
        (200, b"\xff\xfe", "the reply is not JSON"),
        (200, b"[" * 100_000, "the reply is not JSON"),
        (200, b"[]", "not a chat completion"),
        (200, b"3", "not a chat completion"),
        (200, b'{"choices": []}', "not a chat completion"),
        (200, b'{"choices": [{"message": {"content": [1]}}]}', "not a chat completion"),
        (0, b"", "broken reply: Remote end closed connection"),
    ],
)
def test_a_reply_without_answer_is_an_error_of_this_target(
    peer: Peer, status: int, reply: bytes, told: str
) -> None:
    peer.status, peer.reply = status, reply
    with pytest.raises(NoAnswer, match=told) as error:
        Server(peer.url, "m", 100)("x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_that_holds_for_every_target_ends_the_run(peer: Peer, status: int) -> None:
    peer.status, peer.reply = status, b'{"error": "no"}'
    with pytest.raises(InputError, match=f"chat/completions: HTTP {status}: no"):
        Server(peer.url, "m", 100)("x")


def test_a_server_that_does_not_reply_in_time_is_an_error_of_this_target(peer: Peer) -> None:
    peer.delay = 0.5
    with pytest.raises(NoAnswer, match=r"no reply within 0\.1 seconds"):
        Server(peer.url, "m", 100, timeout=0.1)("x")


def test_a_server_that_is_not_there_ends_the_run() -> None:
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=r"cannot be reached: .*refused"):
            Server(url, "m", 100)("x")


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://host", "http://", "http://h:99999", "http://[::1"]
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="--base-url"):
        Server(url, "m", 100)
