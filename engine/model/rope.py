"""Rotary position tables."""

from __future__ import annotations

import numpy as np

from engine.model.spec import RopeSpec


def rope_table(spec: RopeSpec, positions: int, factors: np.ndarray | None) -> np.ndarray:
    """float32 [positions, dims / 2, 2]: cos and sin of every position's angles.

    Angles are computed in float64: at 100k tokens a float32 product would be off by whole radians'
    thousandths.  `factors` [dims / 2] divides the frequencies (llama 3's scaling).
    """
    frequency = spec.base ** (-2.0 * np.arange(spec.dims // 2) / spec.dims) / spec.scale
    if factors is not None:
        frequency = frequency / factors.astype(np.float64)
    angle = np.arange(positions)[:, None] * frequency
    table = np.empty((*angle.shape, 2), np.float32)
    np.cos(angle, out=table[..., 0])
    np.sin(angle, out=table[..., 1])
    return table
