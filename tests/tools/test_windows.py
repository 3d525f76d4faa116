"""Windows measured side by side are those measured one after another."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from letters import TEXT, letters_model

from engine.kv.policy import Policy
from engine.model.load import Model
from tools.ppl import nll_of
from tools.windows import Settings, Windows


@pytest.fixture(scope="module")
def model() -> Model:
    return letters_model()


@pytest.mark.parametrize("chunks", (1, 2, 3, 4))
def test_side_by_side_windows_give_the_same_bits_in_the_same_order(
    model: Model, chunks: int
) -> None:
    windows = Windows(model, TEXT, Settings("decode", 64, chunks))
    kv = windows.stored(Policy.of("int3nsep:32", "q8_0"))
    found = list(windows.measured(lambda w, i: nll_of(w, i, kv)))
    want = [nll_of(windows, i, kv) for i in range(chunks)]
    assert len(found) == chunks
    for a, b in zip(found, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_one_window_raises_reaches_the_caller(model: Model) -> None:
    def measure(windows: Windows, index: int) -> int:
        if index == 1:
            raise ValueError("window 1")
        return index

    with pytest.raises(ValueError, match="window 1"):
        list(Windows(model, TEXT, Settings("decode", 64, 4)).measured(measure))


def test_an_abandoned_measurement_stops_the_windows_that_run(model: Model) -> None:
    windows = Windows(model, TEXT, Settings("decode", 16))
    kv, left = windows.stored(Policy.of("f16", "f16")), threading.Event()
    ended = []

    def measure(view: Windows, index: int) -> None:
        try:
            for _ in view.scored(view.session(kv), view.tokens[index]):
                if index:
                    left.wait()
        finally:
            ended.append(index)

    found = windows.measured(measure)
    next(found)
    threading.Timer(0.2, left.set).start()
    found.close()  # waits for those that run
    assert len(ended) < len(windows.tokens)
    assert len(list(windows.measured(lambda view, i: i))) == len(windows.tokens)
