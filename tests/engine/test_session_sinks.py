"""Exact first tokens: however a sequence came about, they are the same ones."""

from __future__ import annotations

import itertools

import pytest
from test_session import PROMPT, TOLERANCE, error, refusal, session, text

from engine.kv.cache import CacheType
from engine.kv.formats import kv_format


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize("kind", ["q4_0", "int3nsep:32"])
def test_sinks_change_with_no_cut_of_the_prompt(kind: str, name: str) -> None:
    whole = session(name, kind, sink=4).extend(PROMPT)
    logits = whole
    for cuts in ([3, 5, 36, 37, 130], [4, 68], list(range(1, 72))):
        parts = session(name, kind, sink=4)
        for start, stop in itertools.pairwise([0, *cuts, 200]):
            logits = parts.extend(PROMPT[start:stop])
        assert error(logits, whole) < TOLERANCE
    if name == "llama":  # the windows of others have left the sinks behind
        assert error(session(name, kind).extend(PROMPT), whole) > TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("kind", ["q4_0", "int3nsep:32"])
def test_going_back_into_and_behind_the_sinks(kind: str, name: str) -> None:
    other, session_ = text(60, seed=1), session(name, kind, sink=4)
    session_.extend(PROMPT[:100])
    for n in (70, 36, 30, 4, 2, 0):
        tokens = [*PROMPT[:n], *other]
        logits = session_.extend(session_.rewind(tokens))
        session_.extend(session_.rewind(PROMPT[:100]))
        assert error(logits, session(name, kind, sink=4).extend(tokens)) < TOLERANCE
    session_.extend(session_.rewind(PROMPT[:100]))
    session_.truncate(2)
    for token in PROMPT[len(session_.tokens) : 66]:  # with page 2, packed at 68, codes may flip
        logits = session_.extend([token])
    assert error(logits, session(name, kind, sink=4).extend(PROMPT[:66])) < TOLERANCE


@pytest.mark.parametrize("sink", [-1, 33])
def test_more_sinks_than_a_page_holds_are_refused(sink: int) -> None:
    said = refusal(lambda: session(kind="int3nsep:32", sink=sink))
    assert said == f"{sink} exact first tokens: int3nsep:32 takes 0 to 32"
    mixed = CacheType.of(kv_format("q8_0"), 4), CacheType.of(kv_format("q8_0"), 2)
    said = refusal(lambda: session(kind=mixed[0], ctv=mixed[1]))
    assert "equally many sinks, not 4 and 2" in said
