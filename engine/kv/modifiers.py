"""Modifiers of a KV cache type: what happens to keys and values before they are stored.

+h    rotated by an orthonormal Hadamard matrix over the head's channels, queries alike (outputs
      back): scores stay, outliers spread
+b    keys are stored without the bias of their projection, which attention adds back
+nob  keys are stored with it, also where +b is the default: in quantized types
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Modifiers:
    """`rotated`: +h.  `bias`: True for +b, False for +nob, None for the default, and once a model
    has been asked, for keys with their bias."""

    rotated: bool = False
    bias: bool | None = None

    @property
    def suffix(self) -> str:
        """As in a type's name: "", "+h", "+b", "+h+b" ..."""
        bias = {None: "", True: "+b", False: "+nob"}[self.bias]
        return "+h" * self.rotated + bias


PLAIN = Modifiers()


def hadamard_block(head_dim: int) -> int:
    """The channels that are rotated together: the largest power of two that divides head_dim."""
    return head_dim & -head_dim


def hadamard_matrix(head_dim: int) -> np.ndarray:
    """float32 [head_dim, head_dim]: orthonormal Hadamard blocks (Sylvester's), its own inverse."""
    block = hadamard_block(head_dim)
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.kron(np.eye(head_dim // block), matrix / np.sqrt(block)).astype(np.float32)
