"""Laws of every registered KV format; a new one is tested by being registered."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from rows import HEAD_DIMS, gaussian, pages

from engine.errors import InputError
from engine.kv.cache import CacheType
from engine.kv.format import BlockFormat, KVFormat, Side, TokenFormat
from engine.kv.formats import BEST, KV_FORMATS, KV_TYPES, kv_format, side_type
from engine.kv.formats.channels import ChannelFormat

FORMATS = list(KV_FORMATS.values())
TOKEN_FORMATS = [f for f in FORMATS if isinstance(f, TokenFormat)]
BLOCK_FORMATS = [f for f in FORMATS if isinstance(f, BlockFormat)]
PAGE_FORMATS = [f for f in FORMATS if f.page_tokens is not None]
SIDES: tuple[Side, Side] = ("k", "v")
# What rounding may change in a value, relative to the value itself; block types are bounded below.
FLOAT_ROUNDING = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}


def named(formats: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", formats, ids=[f.name for f in formats])


def tokens_of(kind: KVFormat) -> int:
    return kind.page_tokens or 32


def quantizable(kind: TokenFormat) -> bool:
    """Whether `gguf.quants` can encode the type, and so is its oracle."""
    try:
        quants.quantize(
            np.zeros((1, kind.block), np.float32), gguf.GGMLQuantizationType[kind.name.upper()]
        )
    except (KeyError, NotImplementedError):
        return False
    return True


@pytest.mark.parametrize("dim", HEAD_DIMS)
@named([f for f in TOKEN_FORMATS if quantizable(f)])
def test_bytes_are_those_of_ggml(kind: TokenFormat, dim: int) -> None:
    ggml = gguf.GGMLQuantizationType[kind.name.upper()]
    for name, x in pages(32, dim).items():
        if kind.name == "f16" and name == "huge":
            x = x.clip(-60000, 60000)
        if name == "negative zero" and dim % kind.block:
            continue  # beside the padding, which zero is the minimum is chance in NumPy
        padded = np.zeros((32, -(-dim // kind.block) * kind.block), np.float32)
        padded[:, :dim] = x
        want, got = quants.quantize(padded, ggml), kind.encode(x, "k")
        np.testing.assert_array_equal(got, want.view(np.uint8).reshape(-1), err_msg=name)
        decoded = quants.dequantize(want, ggml)[:, :dim].astype(np.float32)
        np.testing.assert_array_equal(kind.decode(got, dim, "k"), decoded, err_msg=name)


@pytest.mark.parametrize("dim", [64, 72])
@named(BLOCK_FORMATS)
def test_round_trip_stays_within_the_types_bound(kind: BlockFormat, dim: int) -> None:
    for name, x in pages(32, dim).items():
        if kind.name in FLOAT_ROUNDING:
            bound = FLOAT_ROUNDING[kind.name] * np.abs(x)
        else:
            blocks = np.zeros((32, -(-dim // kind.block) * kind.block), np.float32)
            blocks[:, :dim] = x
            peak = np.abs(blocks.reshape(32, -1, kind.block)).max(axis=-1)
            bound = peak.repeat(kind.block, axis=1)[:, :dim]
            # integers of b bits cover -2^(b-1) .. 2^(b-1) - 1 steps: a step is at most the largest
            # magnitude by 2^(b-1) - 1, and a clipped value may be off by a whole one
            bits = int(8 * kind.block_nbytes / kind.block)
            # and the scale itself, and an offset, are rounded to half precision
            bound = bound * (1 / (2 ** (bits - 1) - 1) + 4 * 2.0**-11)
        # steps and halves below the normal range are multiples of 2^-24, levels times half of that
        smallest = 0 if kind.name in ("f32", "bf16") else 128 * 2.0**-25
        error = np.abs(kind.decode(kind.encode(x, "k"), dim, "k") - x)
        assert (error <= bound + smallest).all(), name


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("side", SIDES)
@named(FORMATS)
def test_pages_have_the_reported_size_and_shape(kind: KVFormat, side: Side, dim: int) -> None:
    tokens = tokens_of(kind)
    x = gaussian(2, 3, tokens, dim)
    packed = kind.encode(x, side)
    assert packed.dtype == np.uint8
    assert packed.shape == (2, 3, kind.page_nbytes(tokens, dim))
    assert kind.bits_per_value(tokens, dim) == 8 * packed[0, 0].size / (tokens * dim)
    decoded = kind.decode(packed, dim, side)
    assert decoded.dtype == np.float32 and decoded.shape == x.shape
    np.testing.assert_array_equal(kind.encode(x[1, 2], side), packed[1, 2])
    np.testing.assert_array_equal(kind.decode(packed[1, 2], dim, side), decoded[1, 2])


@pytest.mark.parametrize("side", SIDES)
@named(FORMATS)
def test_finite_pages_decode_to_finite_values(kind: KVFormat, side: Side) -> None:
    for name, x in pages(tokens_of(kind), 72).items():
        if kind.name == "f16":
            x = x.clip(-60000, 60000)
        assert np.isfinite(kind.decode(kind.encode(x, side), 72, side)).all(), name


@named(FORMATS)
def test_zeros_come_back_as_zeros(kind: KVFormat) -> None:
    x = np.zeros((tokens_of(kind), 80), np.float32)
    assert not kind.decode(kind.encode(x, "v"), 80, "v").any()


@named(TOKEN_FORMATS)
def test_token_pages_are_their_rows_in_order(kind: TokenFormat) -> None:
    x = gaussian(5, 72)
    rows = [kind.encode(row[None], "k") for row in x]
    assert all(row.size == kind.row_nbytes(72) for row in rows)
    np.testing.assert_array_equal(kind.encode(x, "k"), np.concatenate(rows))


@named([f for f in PAGE_FORMATS if isinstance(f, ChannelFormat)])
def test_both_sides_stand_for_the_same_values(kind: KVFormat) -> None:
    x = gaussian(tokens_of(kind), 96)
    k, v = (kind.decode(kind.encode(x, side), 96, side) for side in SIDES)
    np.testing.assert_array_equal(k, v)


def water_filled(bits: int) -> tuple[float, float]:
    """Codes, three bytes less five bits per channel, one per token, 12 per page."""

    def per_token(channels: int) -> float:
        return bits * channels + 19 * channels / 128 + 8 + 96 / 128

    return per_token(64) / 64, per_token(80) / 72


# Bits per value at head_dim 64 and 72, metadata included.  72 channels fill blocks of 32 as 96 do
# and groups of 16 as 80 do: the padding is paid for and reported.
BITS = {
    "f32": (32, 32),
    "f16": (16, 16),
    "bf16": (16, 16),
    "q8_0": (8.5, 8.5 * 96 / 72),
    "q6_0": (6.5, 6.5 * 96 / 72),
    "q5_1": (6, 6 * 96 / 72),
    "q5_0": (5.5, 5.5 * 96 / 72),
    "q4_1": (5, 5 * 96 / 72),
    "q4_0": (4.5, 4.5 * 96 / 72),
    "iq4_nl": (4.5, 4.5 * 96 / 72),
    "int4nsep": (4.5, (4 * 80 + 2 * 16 * 80 / 128 + 16) / 72),
    "int3nsep": (3.5, (3 * 80 + 2 * 16 * 80 / 128 + 16) / 72),
    "int2nsep": (2.5, (2 * 80 + 2 * 16 * 80 / 128 + 16) / 72),
    "int4nsep-sym": (4.375, (4 * 80 + 16 * 80 / 128 + 16) / 72),
    "int3nsep-sym": (3.375, (3 * 80 + 16 * 80 / 128 + 16) / 72),
    "int3pchan": (3.125, (3 * 80 + 16 * 80 / 128) / 72),
    "int3pchan-asym": (3.25, (3 * 80 + 2 * 16 * 80 / 128) / 72),
    "int4row": (4.25, 4 + 16 / 72),
    "int4row-asym": (4.5, 4 + 32 / 72),
    **{f"int{b}{kind}": water_filled(b) for b in (2, 3, 4) for kind in ("wf", "wfq")},
    # 72 channels of V are three groups, or two, which is more than the ranges of 80 of K take
    "kivi4": (5, (4 * 80 + 32 * 3) / 72),
    "kivi2": (3, (2 * 80 + 32 * 3) / 72),
    "kivi2-g64": (2.5, (2 * 80 + 32 * 2) / 72),
    "hqq4:32": (5, 4 + 32 * 3 / 72),
    "hqq2:64": (2.5, 2 + 32 * 2 / 72),
}


def test_the_bits_of_every_type_are_known() -> None:
    assert set(BITS) == set(KV_FORMATS)


@pytest.mark.parametrize("name", BITS)
def test_bits_per_value_count_metadata_and_padding(name: str) -> None:
    kind = CacheType.of(kv_format(name))
    assert (kind.bits_per_value(64), kind.bits_per_value(72)) == BITS[name]


@named(TOKEN_FORMATS)
def test_the_limit_is_where_stored_values_stop_being_finite(kind: TokenFormat) -> None:
    x = np.zeros((2, 64), np.float32)
    x[0, 3], x[1, 40] = kind.limit, -kind.limit
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isfinite(kind.decode(kind.encode(x, "k"), 64, "k")).all()
        slack = 127 / 113 if kind.name == "iq4_nl" else 1  # its steps grow when they are fitted
        beyond = kind.decode(kind.encode(x * np.float32(1.01 * slack), "k"), 64, "k")
    assert not np.isfinite(beyond).all()


@named(FORMATS)
def test_a_format_is_found_by_its_name(kind: KVFormat) -> None:
    assert kv_format(kind.name) is kind


@pytest.mark.parametrize("tokens", [32, 64, 512, 8192])
@named(PAGE_FORMATS)
def test_the_page_length_is_a_parameter(kind: KVFormat, tokens: int) -> None:
    found = kv_format(f"{kind.name}:{tokens}")
    assert (found.page_tokens, found.name) == (tokens, f"{kind.name}:{tokens}")
    assert type(found) is type(kind)
    assert CacheType.of(found).page_tokens == tokens


BAD = ("", "q3", "Q8_0", " bf16", "bf16 ", "bf16:", "bf16:128", ":128", "a\nb", "x" * 3000)
BAD_LENGTHS = ("", "0", "-32", "+64", "31", "100", "8224", "99999999999", "1e3", "64:64", " 64")


@pytest.mark.parametrize("text", [*BAD, *(f"int3nsep:{n}" for n in (*BAD_LENGTHS, "٣٢", "064"))])
def test_a_wrong_name_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        kv_format(text)
    message = str(error.value)
    assert "\n" not in message and len(message) < 340
    assert "32 to 8192" in message or "page formats" in message or KV_TYPES in message


@pytest.mark.parametrize(("alias", "most"), [("best3", 3.5), ("best2", 2.8)])
def test_the_best_types_take_no_more_bits_than_they_promise(alias: str, most: float) -> None:
    bits = [CacheType.of(kv_format(side_type(alias, s))).bits_per_value(64) for s in SIDES]
    assert sum(bits) / 2 <= most


@pytest.mark.parametrize("side", SIDES)
def test_the_name_of_a_best_type_takes_what_a_type_takes(side: Side) -> None:
    assert set(BEST) <= set(KV_TYPES.replace(";", ",").split(", "))
    for alias, types in BEST.items():
        assert side_type(f"{alias}:256+nob", side) == f"{types[side]}:256+nob"
    assert side_type("int3nsep:64+h", side) == "int3nsep:64+h"
    assert side_type("best30", side) == "best30"
