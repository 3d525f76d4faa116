"""Block types that `gguf.quants` cannot encode, against their recipes one value at a time."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from rows import HEAD_DIMS, gaussian, pages

from engine.kv.formats import kv_format

F32 = np.float32


def blocks_of(dim: int) -> dict[str, np.ndarray]:
    """Named blocks float32 [blocks, 32]: padded rows of awkward pages."""
    named = {**pages(16, dim), "gaussian": gaussian(40, dim)}
    padded = {name: np.pad(x, ((0, 0), (0, -dim % 32))) for name, x in named.items()}
    return {name: x.reshape(-1, 32).astype(F32) for name, x in padded.items()}


def largest(block: np.ndarray) -> np.float32:
    """The element of largest magnitude, the first of them; of zeros, the first."""
    found = block[0]
    for value in block:
        if abs(value) > abs(found):
            found = value
    return found


def nibbles(codes: list[int]) -> list[int]:
    return [codes[i] & 15 | (codes[i + 16] & 15) << 4 for i in range(16)]


def half(value: np.float32) -> list[int]:
    return list(np.float16(value).tobytes())


def q6_0(block: np.ndarray) -> list[int]:
    d = largest(block) / F32(-32)
    inverse = F32(1) / d if d else F32(0)
    codes = [min(63, int(x * inverse + F32(32.5))) for x in block]
    high = [0] * 8
    for i in range(16):
        upper = codes[i] >> 4 | (codes[i + 16] >> 4) << 2
        high[i % 8] |= upper << (4 * (i // 8))
    return half(d) + high + nibbles(codes)


def nearest(levels: list[int], x: np.float32) -> int:
    """The index of the level closest to x, of two equally close the larger."""
    distance = [abs(float(x) - level) for level in levels]
    return max(i for i in range(16) if distance[i] == min(distance))


def iq4_nl(block: np.ndarray) -> list[int]:
    levels = list(quants.IQ4_NL.kvalues)
    peak = largest(block)
    if abs(peak) < F32(1e-15):
        return [0] * 18
    inverse = F32(1) / (peak / F32(-127))
    codes = [nearest(levels, x * inverse) for x in block]
    above, below = F32(0), F32(0)
    for x, code in zip(block, codes, strict=True):
        weight, level = x * x, F32(levels[code])
        above += weight * level * x
        below += weight * level * level
    return half(above / below) + nibbles(codes)


@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("recipe", [q6_0, iq4_nl], ids=["q6_0", "iq4_nl"])
def test_bytes_are_those_of_the_recipe(recipe, dim: int) -> None:
    kind = kv_format(recipe.__name__)
    for name, x in blocks_of(dim).items():
        want = np.array([recipe(block) for block in x], np.uint8)
        got = kind.encode(x, "k").reshape(want.shape)
        np.testing.assert_array_equal(got, want, err_msg=name)


def test_iq4_nl_adds_in_order() -> None:
    # of 4096 blocks those whose scale another order of summing rounds to another float16
    x = np.random.default_rng(0).standard_normal((4096, 32)).astype(F32)[[1627, 1890, 2282]]
    want = np.array([iq4_nl(block) for block in x], np.uint8)
    np.testing.assert_array_equal(kv_format("iq4_nl").encode(x, "k").reshape(3, 18), want)


# Bytes of the C quantizers, compiled without fused products: quantize_row_iq4_nl_ref of ggml, and
# that of q6_0 in ik_llama.cpp without its later second fit of d.
RAMP = ((np.arange(32) - 11) / 7).astype(F32)
GOLDEN = {
    "iq4_nl": "bda55d5d4c4c3b3b3b2a2a29181817170606",
    "q6_0": "b7ad272726261616121282605e3d2b0ae8d6b5a382605e3d2b0a",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_ramp_has_the_bytes_of_the_original(name: str) -> None:
    assert kv_format(name).encode(RAMP[None], "k").tobytes().hex() == GOLDEN[name]


@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_iq4_nl_decodes_as_by_gguf(dim: int) -> None:
    kind = kv_format("iq4_nl")
    rng = np.random.default_rng(dim)
    packed = rng.integers(0, 256, (40, kind.page_nbytes(1, dim) // 18, 18), np.uint8)
    packed[..., 1] &= 0x3F  # a scale that is finite
    want = quants.dequantize(packed, gguf.GGMLQuantizationType.IQ4_NL).reshape(40, -1)[:, :dim]
    np.testing.assert_array_equal(kind.decode(packed.reshape(-1), dim, "k"), want)


def test_q6_0_decodes_every_code_in_every_place() -> None:
    kind = kv_format("q6_0")
    for shift in range(64):
        codes = (np.arange(32) * 5 + shift) % 64
        high = [0] * 8
        for i in range(16):
            high[i % 8] |= (codes[i] >> 4 | (codes[i + 16] >> 4) << 2) << (4 * (i // 8))
        block = np.array([*half(F32(0.5)), *high, *nibbles([int(c) for c in codes])], np.uint8)
        np.testing.assert_array_equal(kind.decode(block, 32, "v")[0], 0.5 * (codes - 32.0))
