"""Simulated pages stand for packed ones: the same recipe, read exactly."""

from __future__ import annotations

import numpy as np
from letters import TEXT, letters_model

from bench.simulated_pages import packed, simulated
from tools.windows import Settings, Windows


def windows(kind: str) -> Windows:
    return Windows(letters_model(), TEXT, Settings("pa", 64, 2, kind, kind))


def test_pages_are_simulated_by_the_types_own_recipe() -> None:
    exact = packed(windows("f32"), windows("f32").tokens[0])
    for kind in ("f32", "int2nsep", "q4_0"):
        here = windows(kind)
        held, replaced = (way(here, here.tokens[0]) for way in (packed, simulated))
        np.testing.assert_allclose(replaced, held, atol=2e-2, err_msg=kind)
        # what the recipe loses is far more than that
        assert (kind == "f32") == (np.abs(held - exact).max() < 2e-2)
