"""Weights of every type are read as `gguf.quants` reads them, and products are exact sums."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants

from bench.op_cases import normal, random_tensor
from engine.bits import unpack_steps
from engine.checkpoint import Tensor
from engine.cpu import CpuOps
from engine.cpu.host import AMX
from engine.cpu.layouts import LAYOUTS, LEVELS, Layout
from engine.cpu.matrix import FEW, Products, matrix
from engine.cpu.memory import Arena, Pool
from engine.cpu.packing import Packing
from engine.cpu.program import Program
from engine.cpu.team import Team
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


def embedded(tensor: Tensor, ids: np.ndarray) -> np.ndarray:
    found = CPU.to_host(CPU.embed(CPU.upload(tensor), ids))
    # a matrix of which only rows are asked for gives the same ones
    np.testing.assert_array_equal(CPU.to_host(CPU.embed(CPU.table(tensor), ids)), found)
    return found


def product(weight: Any, x: np.ndarray) -> np.ndarray:
    return CPU.to_host(CPU.linear(weight, CPU.asarray(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_decoded_as_by_gguf(kind: str) -> None:
    block = SIZES[kind][0]
    for columns in (block, 3 * block):
        tensor = random_tensor(kind, 40, columns, seed=1)
        want = decoded(tensor)
        ids = np.array([0, 39, 7, 7], np.int32)
        got = embedded(tensor, ids)
        # scale times code plus offset may be rounded once or twice
        np.testing.assert_allclose(got, want[ids], rtol=2e-7, atol=2e-7 * np.abs(want).max())


def test_our_own_layouts_are_for_types_that_gguf_knows() -> None:
    assert set(LAYOUTS) <= set(KINDS)
    assert {"IQ2_XXS", "TQ1_0", "MXFP4"} <= set(KINDS) - set(LAYOUTS)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 33, 100])
@pytest.mark.parametrize("kind", FLOATS)
def test_floats_of_any_row_length_are_exact(kind: str, columns: int) -> None:
    tensor = random_tensor(kind, 5, columns)
    ids = np.arange(5, dtype=np.int32)
    np.testing.assert_array_equal(embedded(tensor, ids), decoded(tensor))


def test_halves_cover_their_whole_range() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for kind in ("F16", "BF16"):
        tensor = Tensor("weight", kind, (256, 256), every.view(np.uint8).reshape(256, 512))
        got = embedded(tensor, np.arange(256, dtype=np.int32))
        np.testing.assert_array_equal(got, decoded(tensor))


@pytest.mark.parametrize("kind", [kind for kind in SIZES if kind not in KINDS])
def test_a_type_that_nobody_can_decode_is_refused_by_name(kind: str) -> None:
    data = np.zeros((2, SIZES[kind][1]), np.uint8)
    with pytest.raises(InputError, match=rf"output\.weight.*{kind}"):
        CPU.upload(Tensor("output.weight", kind, (2, SIZES[kind][0]), data))


EXACT = 1e-6  # float32 sums
INTEGERS = 2e-5  # 16-bit activations, steps of a set's largest value / 32512
BFLOAT16 = 6e-3  # activations and weights of 8 bits each


@pytest.mark.parametrize("tokens", [1, 2, FEW, FEW + 1, 9, 31, 32, 33, 100])
@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [("F32", 1, 1), ("F32", 13, 100), ("F16", 37, 33), ("BF16", 33, 65), ("Q8_0", 131, 96)]
    + [(kind, 50, 768) for kind in LAYOUTS],
)
@pytest.mark.parametrize("tiles", [True, False])
def test_products_are_those_of_float64(
    kind: str, rows: int, columns: int, tokens: int, tiles: bool
) -> None:
    if tiles and not AMX:
        pytest.skip("no tile registers here")
    tensor, x = random_tensor(kind, rows, columns), CPU.asarray(normal(tokens, columns))
    weight = decoded(tensor).astype(np.float64)
    team, program = Team(2), Program()
    packing = Packing(team, Arena())
    bias, packed = normal(rows), matrix(tensor, packing)
    packing.finish()
    (y,) = Products(team, Pool(), tiles).add(program, [packed], x, [bias])
    team.run(program.table())
    few, floats = tokens <= FEW, kind in FLOATS
    exact = kind in ("F32", "F16") or (few and floats) or not (few or tiles)
    rounded = INTEGERS if few else BFLOAT16 / 200 if kind == "BF16" else BFLOAT16
    error = EXACT if exact else rounded
    # relative to the sum of magnitudes, which cancellation does not shrink
    bound = error * (np.abs(x.astype(np.float64)) @ np.abs(weight).T + np.abs(bias))
    assert (np.abs(y - (x @ weight.T + bias)) <= bound).all()


@pytest.mark.parametrize("columns", [256, 768])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_packing_keeps_every_code_and_scale(kind: str, columns: int) -> None:
    # the values of codes and scales together are gguf's: neither can change without the other
    tensor = random_tensor(kind, 21, columns, seed=3)
    packing = Packing(Team(2), Arena())
    packed = packing.add(tensor)
    packing.finish()
    parts = unpacked(packed, LAYOUTS[kind], columns)
    layout = LAYOUTS[kind]
    codes = LEVELS[parts["codes"]] if layout.levels else parts["codes"]
    codes = codes.astype(np.float64) - layout.zero
    scales, minima = parts["scales"].astype(np.float64), parts["minima"].astype(np.float64)
    if layout.super:
        wide = 256 // layout.sub
        scales = scales * np.repeat(parts["d"].astype(np.float64), wide, axis=1)
        if layout.minima:
            minima = minima * np.repeat(parts["dmin"].astype(np.float64), wide, axis=1)
    values = codes * np.repeat(scales, layout.sub, axis=1)
    if layout.minima:
        values += np.repeat(minima, layout.sub, axis=1)
    np.testing.assert_allclose(values[:21], decoded(tensor), rtol=3e-7, atol=1e-6)
    assert layout.minima == (parts["minima"].size > 0) and (values[21:] == 0).all()


def unpacked(packed: np.ndarray, layout: Layout, columns: int) -> dict[str, np.ndarray]:
    """`codes` uint8 [rows, columns]; `scales` and `minima` f16 or int8 [rows, columns / sub];
    `d` and `dmin` f16 [rows, columns / 256]; absent parts are empty."""
    groups = packed.shape[0]
    units = packed.reshape(groups, columns // layout.block, layout.unit_nbytes)
    parts = np.split(units, np.cumsum(layout.parts[:-1]), axis=2)
    steps = np.ascontiguousarray(parts[0]).reshape(groups, -1)
    codes = unpack_steps(steps, layout.bits, columns // 4, 64)
    codes = codes.reshape(groups, -1, 16, 4).swapaxes(1, 2).reshape(groups * 16, columns)
    small = np.int8 if layout.super else np.float16
    found = {"codes": codes}
    kinds = {"scales": small, "minima": small, "d": np.float16, "dmin": np.float16}
    for (name, kind), part in zip(kinds.items(), parts[1:], strict=True):
        values = np.ascontiguousarray(part).view(kind).reshape(groups, -1, 16)
        found[name] = values.swapaxes(1, 2).reshape(groups * 16, -1)
    return found


def test_an_input_of_any_memory_layout_is_taken_as_it_reads() -> None:
    tensor, wide = random_tensor("Q4_0", 24, 64), normal(12, 128)
    weight = CPU.upload(tensor)
    for x in (wide[:, :64], wide[:4, 64:], wide[::2, :64], wide.T[:64, :12].T):
        np.testing.assert_array_equal(product(weight, x), product(weight, x.copy()))


def test_each_token_is_multiplied_alone() -> None:
    # a token's result must not depend on who shares its batch, up to the rounding of bfloat16
    weight, x = CPU.upload(random_tensor("Q6_K", 70, 512)), normal(40, 512)
    together = product(weight, x)
    np.testing.assert_array_equal(together[:20], product(weight, x[:20]))
    alone = np.concatenate([product(weight, row[None]) for row in x])
    np.testing.assert_array_equal(alone[:4], product(weight, x[:4]))
    np.testing.assert_allclose(together, alone, rtol=0, atol=BFLOAT16 * np.abs(alone).max())
