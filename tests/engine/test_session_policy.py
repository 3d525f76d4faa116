"""Every layer stores what its policy says, wherever the session goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_session import PROMPT, TOLERANCE, error, model

from engine.errors import InputError
from engine.kv.policy import Policy
from engine.kv.policy_file import read_policy
from engine.session import Session

MIXED = """
k = "int3nsep:32"
v = "q4_0"
sink = {sink}
recent = {recent}
[[layers]]
first = 1
k = "q8_0"
v = "int3wf:64"
"""


def policy(folder: Path, sink: int = 0, recent: int = 0) -> Policy:
    (folder / "mixed.toml").write_text(MIXED.format(sink=sink, recent=recent))
    return read_policy(folder / "mixed.toml")


@pytest.mark.parametrize(("sink", "recent"), [(0, 0), (4, 50)])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
def test_a_mixed_cache_is_the_same_one_on_every_way(
    name: str, sink: int, recent: int, tmp_path: Path
) -> None:
    mixed = policy(tmp_path, sink, recent)
    whole = Session(model(name), policy=mixed)
    logits = whole.extend(PROMPT)
    single, reference = (Session(model(name, b), policy=mixed) for b in ("cpu", "reference"))
    for token in PROMPT:
        told = single.extend([token])
    assert error(told, logits) < TOLERANCE
    assert error(reference.extend(PROMPT), logits) < TOLERANCE
    held = [(layer.k.type.format.name, layer.v.type.format.name) for layer in whole.cache.layers]
    assert held[0] == ("q8_0", "int3wf:64") and set(held[1:]) == {("int3nsep:32", "q4_0")}


def test_a_policy_of_one_pair_is_that_pair() -> None:
    plain = Session(model("llama"), ctk="q8_0", ctv="int3nsep:32", sink=4)
    own = Session(model("llama"), policy=Policy.of("q8_0", "int3nsep:32", 4))
    np.testing.assert_array_equal(own.extend(PROMPT), plain.extend(PROMPT))


@pytest.mark.parametrize("recent", [0, 50])
def test_a_saved_session_keeps_the_types_of_its_layers(recent: int, tmp_path: Path) -> None:
    stayed = Session(model("llama"), policy=policy(tmp_path, recent=recent))
    stayed.extend(PROMPT[:100])
    stayed.save(tmp_path / "s")
    restored = Session.restore(model("llama"), tmp_path / "s")
    assert [layer.k.type for layer in restored.cache.layers] == [
        layer.k.type for layer in stayed.cache.layers
    ]
    for part in (PROMPT[100:130], PROMPT[130:131]):
        np.testing.assert_array_equal(restored.extend(part), stayed.extend(part))
    text = MIXED.format(sink=0, recent=0).replace("q8_0", "f16").replace("int3", "int4")
    (tmp_path / "other.toml").write_text(text)
    other = read_policy(tmp_path / "other.toml")
    converted = Session.restore(model("llama"), tmp_path / "s", policy=other)
    assert [layer.k.type.name for layer in converted.cache.layers] == ["f16", "int4nsep:32"]
    assert converted.tokens == PROMPT[:100]


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_longer_context_has_the_exact_window_that_was_asked_for(
    name: str, tmp_path: Path
) -> None:
    # the first context is shorter than the window, so nothing has been packed yet
    asked = policy(tmp_path, sink=4, recent=150)
    left = Session(model(name), n_ctx=100, policy=asked)
    left.extend(PROMPT[:90])
    left.save(tmp_path / "s")
    for given in (None, asked):
        restored = Session.restore(model(name), tmp_path / "s", n_ctx=250, policy=given)
        fresh = Session(model(name), n_ctx=250, policy=asked)
        fresh.extend(PROMPT[:90])
        assert [(layer.k.type, layer.v.type) for layer in restored.cache.layers] == [
            (layer.k.type, layer.v.type) for layer in fresh.cache.layers
        ]
        assert error(restored.extend(PROMPT[90:]), fresh.extend(PROMPT[90:])) < TOLERANCE
        full = [layer for layer in restored.cache.layers if layer.window is None]
        assert all(layer.k.type.recent == layer.v.type.recent == 150 for layer in full)
        again = tmp_path / "again"
        restored.save(again)
        kept = Session.restore(model(name), again)
        assert [layer.k.recent for layer in kept.cache.layers] == [150] * len(kept.cache.layers)


def test_types_that_a_layer_cannot_have_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[[layers]]\nlast = 1\nk = "q4_0+b"')
    with pytest.raises(InputError, match=r"q4_0\+b: this model's keys have no bias"):
        Session(model("llama"), policy=read_policy(path))
    assert Session(model("qwen2"), policy=read_policy(path)).cache.layers[-1].k.type.modifiers.bias
