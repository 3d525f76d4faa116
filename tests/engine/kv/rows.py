"""Pages of awkward keys and values, the same for every test of formats and caches."""

from __future__ import annotations

import numpy as np

HEAD_DIMS = (16, 32, 64, 72, 80, 96, 112, 128, 256)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 values of the size and spread that keys have: some channels large, some offset."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 0.7, shape[-1]))
    offset = rng.normal(0, 1, shape[-1]) * scale
    return (rng.standard_normal(shape) * scale + offset).astype(np.float32)


def pages(tokens: int, dim: int) -> dict[str, np.ndarray]:
    """Named float32 pages [tokens, dim], every value finite in half precision."""
    rng = np.random.default_rng(dim)
    normal = rng.standard_normal((tokens, dim)).astype(np.float32)
    zeros = np.zeros((tokens, dim), np.float32)
    one_hot = zeros.copy()
    one_hot[np.arange(tokens), rng.integers(0, dim, tokens)] = rng.choice([-2.5, 3.0], tokens)
    sparse = normal.copy()
    sparse[::2] = 0
    # values that are multiples of half a step, for 4 and for 8 bits: every rounding is a tie
    ties = rng.integers(-16, 17, (tokens, dim)) / np.float32(2)
    ties[:, 0] = -8
    wide_ties = rng.integers(-254, 255, (tokens, dim)) / np.float32(2)
    wide_ties[:, 0] = 127
    # both signs of the largest magnitude: the type must pick the one its reference picks
    peaks = np.where(rng.random((tokens, dim)) < 0.5, np.float32(-3), np.float32(3))
    return {
        "random": normal,
        "channels": gaussian(tokens, dim),
        "zero": zeros,
        "constant": np.full((tokens, dim), np.float32(0.3)),
        "huge": normal * np.float32(1e4),
        "tiny": normal * np.float32(1e-6),
        "one-hot": one_hot,
        "every other token zero": sparse,
        "ties": ties.astype(np.float32),
        "wide ties": wide_ties.astype(np.float32),
        "opposite peaks": peaks.astype(np.float32),
        "growing": normal * np.logspace(-4, 3, tokens, dtype=np.float32)[:, None],
        "negative zero": -zeros,
    }
