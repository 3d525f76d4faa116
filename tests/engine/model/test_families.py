"""Every family computes what transformers computes, from GGUF and from safetensors alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import Session, load_model

ORACLES = Path(__file__).parents[2] / "fixtures" / "oracle"
# At a logit scale of 3; an overlooked tensor or configuration key moves some logit by 0.1 or more.
TOLERANCE = 2e-3

FOLDERS = ("llama", "llama3", "qwen2", "qwen3", "gemma3", "gemma3-scale", "mistral")
# gemma3-scale has no GGUF: the format has no key for its scale of attention scores.
GGUFS = tuple(name for name in FOLDERS if name != "gemma3-scale")
FILES = (*FOLDERS, *(f"{name}/model.gguf" for name in GGUFS))


def logits_of(path: Path, backend: str, tokens: np.ndarray) -> np.ndarray:
    """The engine's logits float32 [T, n_vocab] for `tokens` [T], with an exact cache."""
    session = Session(load_model(path, backend=backend), n_ctx=64, ctk="f32", ctv="f32")
    pieces = [(start, rows.copy()) for start, rows in session.score(tokens.tolist())]
    ends = [start + len(rows) for start, rows in pieces]
    assert [start for start, _ in pieces] == [0, *ends[:-1]]
    return np.concatenate([rows for _, rows in pieces])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("file", FILES)
def test_logits_are_those_of_transformers(file: str, backend: str) -> None:
    case = ORACLES / file.removesuffix("/model.gguf")
    logits = logits_of(ORACLES / file, backend, np.load(case / "tokens.npy"))
    np.testing.assert_allclose(logits, np.load(case / "logits.npy"), rtol=0, atol=TOLERANCE)
