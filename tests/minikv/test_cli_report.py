"""The closing line counts bytes as the cache does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import Session, load_model
from minikv.report import f16_nbytes
from minikv.text import one_line, size

ORACLE = Path(__file__).parents[1] / "fixtures" / "oracle"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_bytes_of_f16_are_those_an_f16_cache_has(family):
    # gemma3 has sliding windows, whose pages are freed
    model = load_model(ORACLE / family, backend="reference")
    n_ctx = model.spec.n_ctx_train
    sessions = [Session(model, ctk=kind, ctv=kind) for kind in ("f16", "q8_0", "int3nsep:32")]
    tokens = np.random.default_rng(0).integers(0, model.spec.n_vocab, n_ctx).tolist()
    for start in range(0, n_ctx, 37):
        for session in sessions:
            session.extend(tokens[start : start + 37])
        (f16, *others) = sessions
        assert f16_nbytes(f16) == f16.cache.nbytes
        assert {f16_nbytes(other) for other in others} == {f16.cache.nbytes}


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 20, "3.0 MiB"),
        (1536 << 20, "1.5 GiB"),
        (5000 << 30, "5000.0 GiB"),
    ],
)
def test_sizes_are_in_the_unit_that_reads_best(nbytes, text):
    assert size(nbytes) == text


def test_a_line_for_the_terminal_is_one_line_and_moves_no_cursor():
    assert one_line("a\nb \x1b[2J\u202e c") == "a b \ufffd[2J\ufffd c"
