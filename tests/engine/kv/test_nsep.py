"""int3nsep is the recipe of its description, and costs what its description says."""

from __future__ import annotations

import numpy as np
import pytest
from rows import HEAD_DIMS, gaussian, pages

from engine.kv.format import Side
from engine.kv.formats import kv_format

HALF_ROUNDING = 2.0**-11
TABLE = {  # bits per value by head_dim, pages of 64, 128, 256, 512 and 2048 tokens
    64: ("3.75", "3.50", "3.375", "3.3125", "3.265625"),
    128: ("3.625", "3.375", "3.25", "3.1875", "3.140625"),
    256: ("3.5625", "3.3125", "3.1875", "3.125", "3.078125"),
}


def recipe(x: np.ndarray, bits: int = 3) -> np.ndarray:
    """The reconstruction of a page [P, D] in float64, step by step, with n' unrounded."""
    x = x.astype(np.float64)
    top = 2**bits - 1
    n = np.maximum(np.linalg.norm(x, axis=1), 1e-12)
    u = x / n[:, None]
    low, high = u.min(axis=0), u.max(axis=0)
    m = low.astype(np.float16).astype(np.float64)
    s = ((high - low) / top).astype(np.float16).astype(np.float64)
    s = np.where(high > low, np.maximum(s, 2.0**-24), 0)
    q = np.zeros_like(u)
    moving = s > 0
    q[:, moving] = np.clip(np.rint((u[:, moving] - m[moving]) / s[moving]), 0, top)
    decoded = m + q * s
    gain = n / np.maximum(np.linalg.norm(decoded, axis=1), 1e-8)
    return gain[:, None] * decoded


def packed(x: np.ndarray, side: Side, tokens: int = 128) -> np.ndarray:
    kind = kv_format(f"int3nsep:{tokens}")
    return kind.decode(kind.encode(x, side), x.shape[1], side)


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_reconstruction_is_the_recipes(dim: int, side: Side) -> None:
    # The format computes in float32.  A code whose exact value lies within 1e-6 of a half could
    # round the other way and be off by a step; these seeds have none.
    x = gaussian(128, dim, seed=dim)
    want = recipe(x)
    tolerance = HALF_ROUNDING * np.linalg.norm(x, axis=1, keepdims=True) * 1.01
    assert (np.abs(packed(x, side) - want) <= np.maximum(tolerance, 1e-6)).all()


@pytest.mark.parametrize("tokens", [32, 64, 96, 256, 2048])
def test_reconstruction_is_the_recipes_for_every_page_length(tokens: int) -> None:
    x = gaussian(tokens, 64, seed=tokens)
    want = recipe(x)
    tolerance = HALF_ROUNDING * np.linalg.norm(x, axis=1, keepdims=True) * 1.01
    assert (np.abs(packed(x, "k", tokens) - want) <= tolerance).all()


AWKWARD = [name for name in pages(128, 64) if name != "huge"]


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_pages_follow_the_recipe(name: str) -> None:
    x = pages(128, 64)[name]
    norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    # n' in half precision: 2^-11 relative, and steps of 2^-24 below its normal range
    tolerance = 1.1 * HALF_ROUNDING * norm + 2.0**-25
    assert (np.abs(packed(x, "k") - recipe(x)) <= tolerance).all()


def test_a_channel_that_never_moves_is_stored_exactly_to_half_precision() -> None:
    x = np.ones((128, 64), np.float32)
    x[:, 32:] = -2
    error = np.abs(packed(x, "v") - x)
    assert (error <= 2 * HALF_ROUNDING * np.linalg.norm(x[0])).all()


def test_the_stored_norm_restores_each_tokens_length() -> None:
    x = gaussian(128, 128)
    lengths = np.linalg.norm(packed(x, "k"), axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(x, axis=1), rtol=1.01 * HALF_ROUNDING)


def test_lengths_beyond_half_precision_saturate_and_keep_their_direction() -> None:
    x = pages(128, 64)["huge"]
    got, want = packed(x, "k"), recipe(x)
    assert np.isfinite(got).all()
    length = np.linalg.norm(got, axis=1)
    beyond = np.linalg.norm(want, axis=1) > 70000
    assert beyond.any() and (length[beyond] > 60000).all()
    cosine = np.sum(got * want, axis=1) / (length * np.linalg.norm(want, axis=1))
    np.testing.assert_allclose(cosine, 1, atol=1e-6)


def test_tokens_of_unlike_length_do_not_disturb_each_other() -> None:
    # the reason for separating norms: a token a million times longer leaves the ranges alone
    x = gaussian(128, 64)
    loud = x.copy()
    loud[7] *= 1000
    quiet = np.delete(packed(loud, "k"), 7, axis=0)
    np.testing.assert_array_equal(quiet, np.delete(packed(x, "k"), 7, axis=0))


@pytest.mark.parametrize("dim", TABLE)
def test_bits_per_value_are_those_of_the_table(dim: int) -> None:
    got = []
    for tokens in (64, 128, 256, 512, 2048):
        kind = kv_format(f"int3nsep:{tokens}")
        got.append(kind.bits_per_value(tokens, dim))
        assert got[-1] == 3 + 16 / dim + 32 / tokens
    assert got == [float(bits) for bits in TABLE[dim]]


def test_padding_of_a_head_dim_that_is_no_multiple_of_16_is_counted() -> None:
    kind = kv_format("int3nsep")
    # 72 channels are stored as 80: codes and ranges of 80, norms as ever
    assert kind.page_nbytes(128, 72) == 128 * 80 * 3 // 8 + 128 * 2 + 80 * 4
    assert kind.bits_per_value(128, 72) == pytest.approx(3.8333, abs=1e-4)
