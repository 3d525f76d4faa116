"""What 8-bit activations cost: perplexity with activations rounded as llama.cpp rounds them.

llama.cpp multiplies quantized weights with activations quantized to 8 bits: blocks of 32 (Q8_0 and
Q8_1) for the 32-value weight types, of 256 (Q8_K) for the K-quants.  minikv keeps activations in
float32.  This runs one perplexity with the rounding switched in and one without:

    python bench/activation_rounding.py MODEL TEXT [-c 1024] [--chunks 10]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from engine.cpu import CpuOps
from engine.cpu.matrix import Matrix
from engine.kv.formats.q8_0 import Q8_0
from engine.model.load import Model, open_checkpoint
from tools.ppl import Perplexity, Settings


def rounded_q8_0(x: np.ndarray) -> np.ndarray:
    """x [T, K] through ggml's Q8_0 blocks of 32 and back."""
    blocks = x.reshape(x.shape[0], -1, 32)
    return Q8_0.decode_blocks(Q8_0.encode_blocks(blocks)).reshape(x.shape)


def rounded_q8_k(x: np.ndarray) -> np.ndarray:
    """x [T, K] through ggml's Q8_K blocks of 256 (scale: signed peak / -127, kept in float32)."""
    blocks = x.reshape(x.shape[0], -1, 256)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    inverse = np.divide(np.float32(-127), peak, out=np.zeros_like(peak), where=peak != 0)
    codes = np.minimum(np.rint(blocks * inverse), 127)
    decoded = np.divide(codes, inverse, out=np.zeros_like(blocks), where=inverse != 0)
    return decoded.reshape(x.shape)


class RoundedOps(CpuOps):
    """The CPU backend with llama.cpp's rounding of activations in front of every product."""

    def linear(self, weight: Matrix, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        x = np.ascontiguousarray(x)
        if weight.type.endswith("_K") and x.shape[1] % 256 == 0:
            x = rounded_q8_k(x)
        elif weight.type not in ("F32", "F16", "BF16"):
            x = rounded_q8_0(x)
        return super().linear(weight, x, bias)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Perplexity with float32 and with 8-bit activations."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("-c", "--ctx", type=int, default=1024)
    parser.add_argument("--chunks", type=int, default=10)
    args = parser.parse_args()
    settings = Settings("llama", args.ctx, args.chunks, "f16", "f16")
    for name, ops in (("float32", CpuOps()), ("8-bit", RoundedOps())):
        model = Model(open_checkpoint(args.model), ops)
        for score in Perplexity(model, args.text.read_text(encoding="utf-8"), settings):
            print(f"\r{name} activations: PPL {score.ppl:.4f}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
