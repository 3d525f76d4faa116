"""Scores of keys that are stored without their bias are those of whole keys."""

from __future__ import annotations

import numpy as np
import pytest

from bench.op_cases import Attention
from engine.cpu import CpuOps
from engine.kv.modifiers import hadamard_matrix
from engine.ops import KeyBias

CPU = CpuOps()


def table(n: int, pairs: int) -> np.ndarray:
    """float32 [n, pairs, 2]: (cos, sin) of position times frequency."""
    angles = np.arange(n)[:, None] * 10000.0 ** (-np.arange(pairs) / pairs)
    return np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)


def turned(bias: np.ndarray, angles: np.ndarray, layout: str) -> np.ndarray:
    """`bias` [kv_heads, D] at every position: float64 [kv_heads, n, D]."""
    pairs = angles.shape[1]
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if layout == "norm"
        else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    cos, sin = angles[..., 0].astype(np.float64), angles[..., 1].astype(np.float64)
    out = np.repeat(bias[:, None].astype(np.float64), len(angles), axis=1)
    x, y = bias[:, None, first], bias[:, None, second]
    out[..., first], out[..., second] = x * cos - y * sin, x * sin + y * cos
    return out


def vectors(kv_heads: int, dim: int, turning: int, long: float, layout: str) -> np.ndarray:
    """Biases [kv_heads, D] as models have them: some 6 long, but for the pair that turns slowest
    and what does not turn, which are `long`."""
    x = np.random.default_rng(5).standard_normal((kv_heads, dim)).astype(np.float32)
    x *= np.float32(6) / np.linalg.norm(x, axis=-1, keepdims=True)
    slowest = [turning - 2, turning - 1] if layout == "norm" else [turning // 2 - 1, turning - 1]
    x[:, [*slowest, *range(turning, dim)]] *= np.float32(long / 6)
    return x


def attend64(case: Attention, layer, q: np.ndarray, bias: KeyBias, scale: float) -> np.ndarray:
    k, v = (side.decode(0).astype(np.float64)[:, : layer.n] for side in (layer.k, layer.v))
    lacking = turned(np.asarray(bias.bias), np.asarray(bias.table)[: layer.n], bias.layout)
    group, out = case.heads // case.kv_heads, np.empty(q.shape)
    for t in range(len(q)):
        seen = slice(0, layer.n - len(q) + t + 1)
        for h in range(case.heads):
            scores = k[h // group, seen] @ q[t, h].astype(np.float64)
            scores += lacking[h // group, seen] @ bias.queries[t, h].astype(np.float64)
            weights = np.exp(scale * (scores - scores.max()))
            out[t, h] = weights @ v[h // group, seen] / weights.sum()
    return out


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("layout", ["norm", "neox"])
@pytest.mark.parametrize("length", [6.0, 900.0])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("name", ["bf16", "q8_0", "int3nsep"])
def test_scores_have_what_keys_lack(
    name: str, tokens: int, length: float, layout: str, rotated: bool
) -> None:
    """However long the bias is, and with one query or so many that tiles multiply them."""
    for dim, turning, cached in ((64, 64, 300), (96, 96, 127), (64, 48, 257)):
        case = Attention(name, name, 6, 2, dim, cached=cached, tokens=tokens)
        layer, q, scale = case.layer(CPU), case.inputs()[0], dim**-0.5
        vector = vectors(case.kv_heads, dim, turning, length, layout)
        plain = q @ hadamard_matrix(dim) if rotated else q
        angles = table(layer.n, turning // 2)
        bias = KeyBias(CPU.asarray(plain), vector, angles, layout, rotated)
        got = CPU.to_host(CPU.attend(CPU.asarray(q), layer, scale, 0.0, bias))
        want = attend64(case, layer, q, bias, scale)
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error < 2e-4, (dim, turning, error)
