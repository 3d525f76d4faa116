"""Sinks, modifiers, weighted keys and saved sessions hold their laws together, not only alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_session import PROMPT, TOLERANCE, error, model, session

from engine.errors import InputError
from engine.session import Session


# exact first tokens meet everything that counts positions: pages, noted queries, the key bias
@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma3"])
@pytest.mark.parametrize(
    ("ctk", "ctv", "sink"),
    [("int3wfq:32", "int3wf:32", 4), ("q4_0", "q4_0", 4), ("int3nsep:32", "q8_0", 7)],
)
def test_sinks_modifiers_and_weighted_keys_are_invariant_together(
    name: str, ctk: str, ctv: str, sink: int
) -> None:
    whole = Session(model(name), ctk=ctk, ctv=ctv, sink=sink).extend(PROMPT)
    chunked, single, reference = (
        Session(own, ctk=ctk, ctv=ctv, sink=sink)
        for own in (model(name), model(name), model(name, "reference"))
    )
    for start, stop in ((0, 3), (3, 34), (34, 35), (35, 130), (130, 200)):
        logits = chunked.extend(PROMPT[start:stop])
    assert error(logits, whole) < TOLERANCE
    for token in PROMPT:
        logits = single.extend([token])
    assert error(logits, whole) < TOLERANCE
    assert error(reference.extend(PROMPT), whole) < TOLERANCE
    plain = session(name, ctk, ctv=ctv).extend(PROMPT)
    assert error(plain, whole) > 1e-4  # the sinks are really held apart


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("q4_0", "q4_0+b"), ("q8_0+nob", "q8_0+nob"), ("int3nsep:32+h", "int3nsep:32+h+b")],
)
def test_modifiers_are_kept_and_not_exchanged(kind: str, kept: str, tmp_path: Path) -> None:
    # keys without their bias and keys with it are different numbers
    stayed = Session(model("qwen2"), ctk=kind, ctv="q8_0")
    stayed.extend(PROMPT[:100])
    stayed.save(tmp_path / "s")
    restored = Session.restore(model("qwen2"), tmp_path / "s")
    assert restored.cache.layers[0].k.type.name == kept
    for part in (PROMPT[100:130], PROMPT[130:131]):
        np.testing.assert_array_equal(restored.extend(part), stayed.extend(part))
    other = "q4_0+nob" if kept == "q4_0+b" else kind.split("+")[0]
    with pytest.raises(InputError, match="cannot take over"):
        Session.restore(model("qwen2"), tmp_path / "s", ctk=other)
