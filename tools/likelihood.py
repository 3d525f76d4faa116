"""Probabilities of tokens from logits, in float64 and one row at a time: n_vocab numbers of
memory."""

from __future__ import annotations

import math

import numpy as np


def log_mass(row: np.ndarray) -> tuple[np.ndarray, float]:
    """(weights float64 [n_vocab], m) of the logits `row`: the probabilities are the weights over
    their sum, and their logarithms are row - m."""
    row = row.astype(np.float64)
    top = float(row.max())
    row -= top
    np.exp(row, out=row)
    return row, top + math.log(row.sum())


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-ln softmax(logits)[target] as float64 [m], from float32 logits [n >= m, n_vocab]."""
    pairs = zip(logits, targets, strict=False)
    return np.array([log_mass(row)[1] - float(row[target]) for row, target in pairs], np.float64)


def divergence(base: np.ndarray, row: np.ndarray, target: int) -> tuple[float, float, float]:
    """(KL divergence of `row` from `base`, -ln p(target) of base, and of row), in nats.

    Both are logits float32 [n_vocab].  Equal rows diverge by exactly 0.
    """
    weights, mass_base = log_mass(base)
    _, mass = log_mass(row)
    # E[ln p - ln q] over p, where ln p - ln q is the logits' difference save for the masses'
    difference = base.astype(np.float64)
    difference -= row
    kld = float(weights @ difference) / float(weights.sum()) - (mass_base - mass)
    # rounding alone may take it below 0
    return max(kld, 0.0), mass_base - float(base[target]), mass - float(row[target])
