"""A chat remembers, reads only what is new, and Ctrl-C stops the answer, not the program."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command import ROOT, heed_ctrl_c
from tiny_model import ANSWER_TEXT, ANSWER_TOKENS, write_tiny_model

from engine import SamplerSpec, load_model
from minikv.chat import Conversation
from minikv.run import Answering, ModelChoice

INTERRUPT, END_OF_FILE = b"\x03", b"\x04"
# the terminal must control the process for Ctrl-C to reach it
CHILD = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "from minikv.cli import main; main()"
)


class Terminal:
    """A `minikv` that sits at a terminal."""

    def __init__(self, *args: object) -> None:
        self._master, slave = pty.openpty()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
        command = [sys.executable, "-c", CHILD, *map(str, args)]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=heed_ctrl_c,
            env=environment,
        )
        os.close(slave)
        self._seen = b""

    def send(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read_until(self, text: str, timeout: float = 60) -> str:
        """What appears up to `text`, which must come; the rest is left for later."""
        end = time.monotonic() + timeout
        while text.encode() not in self._seen:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not appear, but {self._seen!r}"
            self._seen += os.read(self._master, 4096)
        before, _, self._seen = self._seen.partition(text.encode())
        return before.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def chat(**changes: bool) -> Terminal:
        model = write_tiny_model(tmp_path / "chat.gguf", n_ctx=100_000, **changes)
        opened.append(Terminal("run", "--backend", "reference", "-m", model))
        opened[-1].read_until("> ")
        return opened[-1]

    yield chat
    for one in opened:
        one.close()


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(terminal):
    chat = terminal(endless=True)
    chat.send(b"Yo\n")
    chat.read_until(ANSWER_TEXT + "Hi")
    chat.send(INTERRUPT)
    report = chat.read_until("of f16")
    assert "prompt 21 tokens, " in report
    chat.read_until("> ")
    chat.send(b"Yo again\n")
    chat.read_until(ANSWER_TEXT)
    chat.send(INTERRUPT)
    # the second turn builds on the first and on its unfinished answer
    assert " cached)" in chat.read_until("of f16")
    chat.read_until("> ")
    assert chat.process.poll() is None
    chat.send(b"/quit\n")
    assert chat.process.wait(60) == 0


@pytest.mark.parametrize("key", [INTERRUPT, END_OF_FILE])
def test_ctrl_c_and_ctrl_d_at_the_prompt_leave(terminal, key):
    chat = terminal()
    # CPython's input() can lose a key pressed between its prompt and its wait: a user presses again
    for _ in range(60):
        chat.send(key)
        with suppress(subprocess.TimeoutExpired):
            assert chat.process.wait(1) == 0
            return
    pytest.fail("the chat did not leave")


def test_a_chat_answers_line_after_line(terminal):
    chat = terminal()
    chat.send(b"\n")  # an empty line is no question
    chat.read_until("> ")
    for question in (b"Yo\n", b"And now?\n"):
        chat.send(question)
        chat.read_until(ANSWER_TEXT)
        chat.read_until("> ")
    chat.send(b"/reset\n")
    chat.read_until("> ")
    chat.send(b"Yo\n")
    # "<|im_start|>user\nYo" and what follows it in the template is still cached
    assert "prompt 1 tokens (+20 cached)" in chat.read_until("of f16")


@pytest.fixture
def conversation(tmp_path: Path) -> Callable[..., Conversation]:
    def start(template: bool = True, system: str | None = None) -> Conversation:
        changes = {} if template else {"template": None}
        path = write_tiny_model(tmp_path / "tiny.gguf", **changes)
        choice = ModelChoice(str(path), "bf16", "bf16", None, None, "reference")
        model = load_model(path, backend="reference")
        answering = Answering(SamplerSpec(), None, system, raw=False)
        return Conversation(model, choice.session(model), answering, "tiny")

    return start


def test_a_turn_reads_only_what_is_new(conversation, capsys):
    talk = conversation()
    talk.answer("Yo")
    talk.answer("Yo")
    out, err = capsys.readouterr()
    assert out == f"{ANSWER_TEXT}\n" * 2
    # the answer is in the cache; new are its end, the line end after it and the next 21 tokens
    assert err.splitlines()[1].startswith(f"prompt 23 tokens (+{21 + ANSWER_TOKENS} cached), ")


def test_the_system_message_survives_a_reset(conversation, capsys):
    talk = conversation(system="Be kind.")
    talk.answer("Yo")
    talk.reset()
    talk.answer("Yo")
    first, second = capsys.readouterr().err.splitlines()
    tokens = int(first.split()[1])
    assert tokens > 21
    assert second.startswith(f"prompt 1 tokens (+{tokens - 1} cached)")


def test_a_turn_that_does_not_fit_is_forgotten(conversation, capsys):
    talk = conversation()
    talk.answer("Yo")
    talk.answer("Yo" * 200)
    talk.answer("Yo")
    _, refused, last = capsys.readouterr().err.splitlines()
    assert "the context only 256; shorten it or raise -c (/reset forgets" in refused
    assert last.startswith("prompt 23 tokens (+31 cached)")


def test_a_base_model_completes_each_line_by_itself(conversation, capsys):
    talk = conversation(template=False)
    talk.answer("Yo")
    talk.answer("So")
    note, _, last = capsys.readouterr().err.splitlines()
    assert "has no chat template" in note
    assert last.startswith("prompt 2 tokens, ")


def test_json_is_refused_in_a_chat(tmp_path):
    terminal = Terminal("run", "--json")
    assert "minikv: --json needs a PROMPT" in terminal.read_until("not one answer")
    assert terminal.process.wait(60) == 1
    terminal.close()
