"""Weights of every type are read as `gguf.quants` reads them, and products are exact sums."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from op_cases import normal, random_tensor

from engine.checkpoint import Tensor
from engine.cpu import CpuOps
from engine.cpu.matrix import DECODERS
from engine.errors import InputError

CPU = CpuOps()
FLOATS = ("F32", "F16", "BF16")
SIZES = {kind.name: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.GGMLQuantizationType}


def decodable(kind: str) -> bool:
    block = np.zeros((1, SIZES[kind][1]), np.uint8)
    try:
        quants.dequantize(block, gguf.GGMLQuantizationType[kind])
    except NotImplementedError:
        return False
    return True


KINDS = [kind for kind in SIZES if decodable(kind)]


def decoded(tensor: Tensor) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[tensor.type]
    return quants.dequantize(tensor.data, kind).astype(np.float32).reshape(tensor.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_decoded_as_by_gguf(kind: str) -> None:
    block = SIZES[kind][0]
    for columns in (block, 3 * block):
        tensor = random_tensor(kind, 40, columns, seed=1)
        want = decoded(tensor)
        ids = np.array([0, 39, 7, 7], np.int32)
        got = CPU.embed(CPU.upload(tensor), ids)
        # scale times code plus offset may be rounded once or twice
        np.testing.assert_allclose(got, want[ids], rtol=2e-7, atol=2e-7 * np.abs(want).max())


def test_our_own_decoders_are_for_types_that_gguf_knows() -> None:
    assert set(DECODERS) <= set(KINDS)
    assert {"IQ2_XXS", "TQ1_0", "MXFP4"} <= set(KINDS) - set(DECODERS)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 33, 100])
@pytest.mark.parametrize("kind", FLOATS)
def test_floats_of_any_row_length_are_exact(kind: str, columns: int) -> None:
    tensor = random_tensor(kind, 5, columns)
    ids = np.arange(5, dtype=np.int32)
    np.testing.assert_array_equal(CPU.embed(CPU.upload(tensor), ids), decoded(tensor))


def test_halves_cover_their_whole_range() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for kind in ("F16", "BF16"):
        tensor = Tensor("weight", kind, (256, 256), every.view(np.uint8).reshape(256, 512))
        got = CPU.embed(CPU.upload(tensor), np.arange(256, dtype=np.int32))
        np.testing.assert_array_equal(got, decoded(tensor))


@pytest.mark.parametrize("kind", [kind for kind in SIZES if kind not in KINDS])
def test_a_type_that_nobody_can_decode_is_refused_by_name(kind: str) -> None:
    data = np.zeros((2, SIZES[kind][1]), np.uint8)
    with pytest.raises(InputError, match=rf"output\.weight.*{kind}"):
        CPU.upload(Tensor("output.weight", kind, (2, SIZES[kind][0]), data))


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [("F32", 1, 1), ("F32", 13, 100), ("F16", 37, 33), ("Q8_0", 131, 96), ("Q4_K", 5, 768)],
)
def test_products_are_those_of_float64(kind: str, rows: int, columns: int, tokens: int) -> None:
    tensor, x = random_tensor(kind, rows, columns), normal(tokens, columns)
    weight = decoded(tensor).astype(np.float64)
    got = CPU.linear(CPU.upload(tensor), x)
    # float32 sums: relative to the sum of magnitudes, which cancellation does not shrink
    bound = 1e-6 * (np.abs(x.astype(np.float64)) @ np.abs(weight).T)
    assert (np.abs(got - x @ weight.T) <= bound).all()


def test_a_product_does_not_depend_on_what_the_input_array_looks_like_in_memory() -> None:
    tensor, wide = random_tensor("Q4_0", 24, 64), normal(12, 128)
    weight = CPU.upload(tensor)
    for x in (wide[:, :64], wide[:4, 64:], wide[::2, :64], wide.T[:64, :12].T):
        np.testing.assert_array_equal(
            CPU.linear(weight, x), CPU.linear(weight, np.ascontiguousarray(x))
        )


def test_each_token_is_multiplied_alone() -> None:
    # a token's result must not depend on who shares its batch, up to the order of additions
    weight, x = CPU.upload(random_tensor("Q6_K", 70, 512)), normal(40, 512)
    together = CPU.linear(weight, x)
    alone = np.concatenate([CPU.linear(weight, row[None]) for row in x])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
