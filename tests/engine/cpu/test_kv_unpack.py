"""Pages of codes are unpacked to the floats that their formats decode, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cpu.kv_seal import format_variant
from engine.cpu.kv_unpack import scratch_nbytes, unpacker
from engine.kv.format import Side, TokenFormat
from engine.kv.formats import ALL_KV_FORMATS, kv_format
from engine.kv.formats.channels import ChannelFormat
from engine.kv.formats.kivi import KiviFormat
from engine.kv.formats.waterfill import WaterFilledFormat

PAGES = [name for name, kind in ALL_KV_FORMATS.items() if not isinstance(kind, TokenFormat)]
LENGTHS = ["int3nsep:32", "int3wf:32", "int2wfq:96", "int4wf:160", "kivi2:96", "kivi3-g64:160"]
GUARD = 64


def unpacked(name: str, side: Side, page: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The page's rows and what its queries weigh."""
    kind = kv_format(name)
    assert isinstance(kind, ChannelFormat | KiviFormat | WaterFilledFormat)
    tokens, verb = kind.page_tokens, unpacker(kind)
    assert verb is not None
    nbytes = scratch_nbytes(tokens, dim)
    scratch = np.full(nbytes + GUARD, 0xA5, np.uint8)
    rows = np.full(tokens * dim + 16 + GUARD, 7, np.float32)
    power = np.full(dim + GUARD, 7, np.float32)
    verb.function(
        page.ctypes.data, scratch.ctypes.data, rows.ctypes.data, power.ctypes.data,
        tokens, dim, int(side == "v"), *format_variant(kind, tokens, side),
        kind.codes_nbytes(tokens, dim),
    )  # fmt: skip
    assert (scratch[nbytes:] == 0xA5).all()
    assert (rows[tokens * dim + 16 :] == 7).all() and (power[dim:] == 7).all()
    return rows[: tokens * dim].reshape(tokens, dim), power[:dim]


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize("name", [*PAGES, *LENGTHS])
def test_rows_are_those_that_the_format_decodes(name: str, side: Side) -> None:
    kind = kv_format(name)
    for dim in (16, 72, 128):
        rng = np.random.default_rng(dim)
        x = rng.standard_normal((1, kind.page_tokens or 0, dim), np.float32)
        x *= (10.0 ** rng.uniform(-3, 3, dim)).astype(np.float32)
        x[0, 3], x[0, :, 5] = 0, -2  # a token without a length, a channel without a range
        page = kind.encode(x, side)
        want, (got, power) = kind.decode(page, dim, side)[0], unpacked(name, side, page[0], dim)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
        told = kind.power(page, dim, side)
        if told is not None:
            np.testing.assert_array_equal(power, told[0])
