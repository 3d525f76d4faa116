"""Packed pages beside simulated ones: the perplexity of both, by protocol pa.

The simulated cache is float32 throughout; its one page is replaced by what the type's NumPy recipe
(`encode`, then `decode`) makes of it.  The packed one is what every command runs: codes packed by
the backend's kernels and read by its fused attention.

Products with quantized weights round what they read, so that two caches that are equal but for
their last bits differ in the third decimal; `--exact` expands the weights to float32, where they do
not.

    python -m bench.simulated_pages MODEL TEXT int3nsep [-c 1024] [--chunks 3] [--exact]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine import Session
from engine.backends import new_ops
from engine.checkpoint import Checkpoint, Tensor
from engine.kv.formats.floats import F32
from engine.kv.policy import Policy
from engine.model.load import Model, open_checkpoint
from engine.reference import dequantize
from tools.likelihood import negative_log_likelihood
from tools.windows import Settings, Windows


def expanded(found: Checkpoint) -> Checkpoint:
    """The checkpoint with its weights as float32, whose products round nothing."""
    tensors = {}
    for tensor in found.tensors.values():
        values = dequantize(tensor)
        data = values.view(np.uint8).reshape(1 if values.ndim == 1 else len(values), -1)
        tensors[tensor.name] = Tensor(tensor.name, "F32", tensor.shape, data)
    return replace(found, tensors=tensors)


def simulated(windows: Windows, window: Sequence[int]) -> np.ndarray:
    """-ln p of the window's second half, float64 [n_ctx / 2], through simulated pages."""
    k, v = windows.stored(windows.settings.kv).types
    exact = [type(t)(F32, t.page_tokens, F32, modifiers=t.modifiers) for t in (k, v)]
    session = windows.session(Policy("simulated", (exact[0], exact[1])))
    half = windows.first
    logits = [row for _, row in session.score(window[:half], half - 1)]
    _replace_pages(session, {"k": k, "v": v})
    logits += [row for _, row in session.score(window[half:])]
    ops = windows.model.ops
    return negative_log_likelihood(ops, np.concatenate(logits), np.asarray(window[half:]))


def packed(windows: Windows, window: Sequence[int]) -> np.ndarray:
    """The same through the packed cache."""
    pieces = windows.scored(windows.session(windows.stored(windows.settings.kv)), window)
    found = [negative_log_likelihood(windows.model.ops, rows, ids) for ids, rows in pieces]
    return np.concatenate(found)


def _replace_pages(session: Session, types: dict) -> None:
    for layer in session.cache.layers:
        for side in (layer.k, layer.v):
            stored, (page,) = types[side.side].format, side.pages
            assert page is not None
            packed = stored.encode(side.decode(0), side.side)
            page[:] = F32.encode(stored.decode(packed, side.head_dim, side.side), side.side)


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity of packed and of simulated pages.")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("type")
    parser.add_argument("-c", "--ctx", type=int, default=1024)
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--exact", action="store_true", help="expand weights to float32")
    args = parser.parse_args()
    settings = Settings("pa", args.ctx, args.chunks, args.type, args.type)
    weights = open_checkpoint(args.model)
    model = Model(expanded(weights) if args.exact else weights, new_ops("cpu"))
    windows = Windows(model, args.text.read_text(encoding="utf-8"), settings)
    nll = [np.concatenate([way(windows, w) for w in windows.tokens]) for way in (packed, simulated)]
    ppl = [float(np.exp(x.mean())) for x in nll]
    print(f"{args.type}: packed {ppl[0]:.5f}, simulated {ppl[1]:.5f}, {ppl[0] - ppl[1]:+.5f}")


if __name__ == "__main__":
    main()
