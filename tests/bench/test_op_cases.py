"""The byte counts of op cases, from which bandwidths are computed, are those of the data."""

from __future__ import annotations

import numpy as np
import pytest

from bench.kernels import WEIGHT_TYPES
from bench.op_cases import DISTINCT, OP_CASES, Attention, linear, matrix_nbytes, random_tensor
from engine.reference import ReferenceOps


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_a_matrix_counts_the_bytes_of_its_tensor(kind: str) -> None:
    assert matrix_nbytes(kind, 7, 512) == random_tensor(kind, 7, 512).data.nbytes


def test_a_product_counts_weights_inputs_outputs_and_bias() -> None:
    case = linear("F32", 5, 32, 3, bias=True)
    assert case.nbytes == 4 * (5 * 32 + 3 * 32 + 3 * 5 + 5)


@pytest.mark.parametrize("kind", ["bf16", "q8_0", "int3nsep"])
def test_attention_counts_queries_outputs_and_pages(kind: str) -> None:
    shape = Attention(kind, kind, heads=6, kv_heads=2, dim=64, cached=256)
    layer = shape.layer(ReferenceOps())
    layer.seal()
    packed = sum(page.nbytes for side in (layer.k, layer.v) for page in side.pages)
    assert shape.nbytes == packed + 4 * 2 * 6 * 64


def test_attention_in_a_window_counts_what_its_queries_see() -> None:
    whole, part = (Attention("f32", "f32", cached=300, tokens=9, window=w) for w in (None, 33))
    assert whole.nbytes - part.nbytes == (300 - (33 + 8)) * 2 * 64 * 2 * 4


def test_every_op_case_has_bytes() -> None:
    assert all(case.nbytes > 0 for case in OP_CASES)


def test_large_matrices_repeat_their_blocks() -> None:
    rows = 3 * DISTINCT // 1024
    data = random_tensor("F32", rows, 1024).data
    assert data.nbytes == matrix_nbytes("F32", rows, 1024)
    np.testing.assert_array_equal(data[: rows // 3], data[rows // 3 : 2 * rows // 3])
