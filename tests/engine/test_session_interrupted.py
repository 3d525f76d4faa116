"""Ctrl-C may come between any two steps of Python: a session then is what its tokens tell."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from test_session import PROMPT, TOLERANCE, error, exact, model, session

from engine.cpu import CpuOps
from engine.kv import tail
from engine.kv.queries import QueryPower
from engine.model import decoder
from engine.model.load import Model
from engine.session import Session

_IGNORED = ("__del__", "give_back")  # Python reports what they raise and goes on


def interrupted(body: Callable[[], Any], moment: int) -> bool:
    """Run `body` until Python looks for signals the moment-th time in the engine, as a function
    begins or one of C's has returned; whether it came so far."""
    left, found = moment, False

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left, found
        code = frame.f_code
        if event in ("call", "c_return") and "engine" in code.co_filename:
            left -= code.co_name not in _IGNORED
            if left == 0:
                sys.setprofile(None)
                found = True
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        body()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return found


# of memory whose owner never came to be
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("ctk", "ctv"), [("int3nsep:32", "q8_0"), ("q4_0", "int3wf:32"), ("int3wfq:32", "bf16")]
)
@pytest.mark.parametrize(
    ("act", "step"),
    [
        (lambda own: own.truncate(70), 1),
        (lambda own: own.extend(PROMPT[120:121]), 37),
        (lambda own: own.extend(PROMPT[120:170]), 41),
    ],
    ids=["truncate", "step", "extend"],
)
def test_an_interruption_leaves_a_session_that_its_tokens_tell(
    act: Callable[[Session], Any], step: int, ctk: str, ctv: str
) -> None:
    wants: dict[int, np.ndarray] = {}
    came, moment = True, 1
    while came:
        own = session(kind=ctk, ctv=ctv)
        own.extend(PROMPT[:120])
        came = interrupted(lambda own=own: act(own), moment)
        moment += step
        n = len(own.tokens)
        assert own.tokens == PROMPT[:n] and own.cache.n == n
        if n not in wants:
            wants[n] = session(kind=ctk, ctv=ctv).extend(PROMPT[: n + 20])
        assert error(own.extend(PROMPT[n : n + 20]), wants[n]) < TOLERANCE
    assert moment > 10 * step


class Once:
    """`made`, but interrupted before it begins for the first time."""

    def __init__(self, made: Callable[..., Any]) -> None:
        self._made, self._came = made, False

    def __call__(self, *arguments: Any) -> Any:
        if not self._came:
            self._came = True
            raise KeyboardInterrupt
        return self._made(*arguments)


def test_rotation_tables_that_an_interruption_kept_away_are_made_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Session(Model(exact("llama"), CpuOps(1)), ctk="f32", ctv="f32")
    monkeypatch.setattr(decoder, "rope_table", Once(decoder.rope_table))
    with pytest.raises(KeyboardInterrupt):
        own.extend(PROMPT)
    np.testing.assert_array_equal(own.extend(PROMPT), session().extend(PROMPT))


def test_weighted_keys_know_their_queries_after_an_interruption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Session(model("llama"), ctk="int3wfq:32", ctv="f32")
    monkeypatch.setattr(tail, "QueryPower", Once(QueryPower))
    with pytest.raises(KeyboardInterrupt):
        own.extend(PROMPT)
    own.extend(PROMPT)
    for layer in own.cache.layers:
        assert layer.k.queries is not None and (layer.k.queries.rows != 1).any()
