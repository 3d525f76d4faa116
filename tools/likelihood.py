"""What a model's logits say of the tokens that came."""

from __future__ import annotations

import numpy as np

from engine.ops import Ops


def negative_log_likelihood(ops: Ops, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-ln softmax(logits)[target] as float64 [m], from float32 logits [n >= m, n_vocab]."""
    rows = logits[: len(targets)]
    return ops.log_masses(rows) - _of_targets(rows, targets)


def divergence(
    ops: Ops, base: np.ndarray, logits: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(KL divergence of `logits` from `base`, -ln p(target) of base, and of logits), in nats.

    float64 [m] each, from float32 logits [n >= m, n_vocab].  Equal rows diverge by exactly 0.
    """
    base, logits = base[: len(targets)], logits[: len(targets)]
    kld, mass_base, mass = ops.divergences(base, logits).T
    return kld, mass_base - _of_targets(base, targets), mass - _of_targets(logits, targets)


def _of_targets(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.take_along_axis(logits, targets[:, None], axis=1)[:, 0].astype(np.float64)
