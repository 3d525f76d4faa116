"""An exact window of the newest tokens: however a sequence came about, it is the same one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_session import PROMPT, TOLERANCE, error, model, text

from engine.kv.cache import CacheType
from engine.kv.formats import kv_format
from engine.kv.formats.floats import BF16, F32
from engine.session import Session

CASES = [("q4_0", 0, 64), ("q4_0", 4, 100), ("int3nsep:32", 4, 40), ("int3wfq:32", 0, 33)]


def session(name: str, kind: str, sink: int, recent: int, backend: str = "cpu") -> Session:
    own = CacheType.of(kv_format(kind), sink, BF16, recent)
    return Session(model(name, backend), ctk=own, ctv=own)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize(("kind", "sink", "recent"), CASES)
def test_no_cut_of_the_prompt_and_no_backend_changes_the_window(
    name: str, kind: str, sink: int, recent: int
) -> None:
    whole = session(name, kind, sink, recent).extend(PROMPT)
    logits = whole
    for cuts in ([3, 65, 66, 170], list(range(1, 200))):
        parts = session(name, kind, sink, recent)
        for start, stop in itertools.pairwise([0, *cuts, 200]):
            logits = parts.extend(PROMPT[start:stop])
        assert error(logits, whole) < TOLERANCE
    reference = session(name, kind, sink, recent, "reference").extend(PROMPT)
    assert error(reference, whole) < TOLERANCE
    packed = session(name, kind, sink, 0).extend(PROMPT)
    assert error(packed, whole) > 1e-4  # the window is really exact


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(("kind", "sink", "recent"), CASES)
def test_going_back_inside_and_behind_the_window(
    name: str, kind: str, sink: int, recent: int
) -> None:
    other, session_ = text(50, seed=1), session(name, kind, sink, recent)
    session_.extend(PROMPT)
    for n in (199, 190, 180, 150, 100, 3, 0):
        tokens = [*PROMPT[:n], *other]
        logits = session_.extend(session_.rewind(tokens))
        assert error(logits, session(name, kind, sink, recent).extend(tokens)) < TOLERANCE
        session_.extend(session_.rewind(PROMPT))


def test_a_window_as_long_as_the_sequence_is_an_exact_cache() -> None:
    kind = CacheType.of(kv_format("q4_0"), 0, F32, 4096)
    own = Session(model("llama"), n_ctx=256, ctk=kind, ctv=kind)
    plain = Session(model("llama"), n_ctx=256, ctk="f32", ctv="f32")
    np.testing.assert_array_equal(own.extend(PROMPT), plain.extend(PROMPT))
    assert own.cache.layers[0].k.type.recent == 256
