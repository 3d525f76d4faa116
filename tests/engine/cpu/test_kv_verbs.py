"""Score and mix of every format, with tile registers and without, for few and many query rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from engine.cpu.host import AMX
from engine.cpu.jit import call, kernel
from engine.cpu.kv_block_codes import codes_of
from engine.cpu.kv_blocks import FEW_ROWS
from engine.cpu.kv_verbs import PageVerbs, page_verbs, scratch_nbytes
from engine.cpu.simd import address_of
from engine.kv.format import Side, TokenFormat
from engine.kv.formats import ALL_KV_FORMATS, KV_FORMATS, kv_format

PATHS = [False, True] if AMX else [False]
FEW, MANY = (1, 2, 3, 5, 8, 9), (13, 33, 64)
# errors in units of the largest sum of magnitudes
FLOAT, SIXTEEN_BITS, HALVES = 1e-6, 1e-4, 2e-5
GUARD = 64


@kernel
def run_verb(verb, page, n, a, stride, rows, dim, out, scratch, p, r, s):
    arguments = (
        address_of(page), n, address_of(a), stride, rows, dim, address_of(out),
        address_of(scratch), p, r, s,
    )  # fmt: skip
    call(verb, arguments)


@kernel
def run_pages(verb, cells, offset, size, n, a, stride, rows, dim, out, scratch, p, r, s):
    arguments = (
        address_of(cells), offset, size, n, address_of(a), stride, rows, dim, address_of(out),
        address_of(scratch), p, r, s,
    )  # fmt: skip
    call(verb, arguments)


def run_page(verbs: PageVerbs, verb: int, page: np.ndarray, n: int, *rest: Any) -> None:
    if verbs.runs:
        run_pages(verb, np.array([page.ctypes.data]), 0, n, n, *rest, *verbs.parameters)
    else:
        run_verb(verb, page, n, *rest, *verbs.parameters)


@lru_cache(maxsize=64)
def random_page(name: str, side: Side, size: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """A packed page uint8 [bytes] and what it stands for, float64 [size, dim]."""
    kind = kv_format(name)
    x = np.random.default_rng(dim).standard_normal((1, size, dim), np.float32)
    page = kind.encode(x, side)
    return page[0], kind.decode(page, dim, side)[0].astype(np.float64)


@dataclass(frozen=True)
class Case:
    name: str
    side: Side
    rows: int
    dim: int
    n: int | None = None  # tokens filled, None for the whole page

    def result(self, tiles: bool) -> tuple[np.ndarray, np.ndarray, float]:
        """What the verb computes, guard bands checked, the same in float64, and the largest sum of
        the products' magnitudes."""
        kind = kv_format(self.name)
        size = kind.page_tokens or max(128, -(-(self.n or 0) // 32) * 32)
        n, rng = self.n or size, np.random.default_rng([self.rows, self.dim])
        wide = -(-self.dim // 32) * 32
        page, exact = random_page(self.name, self.side, size, self.dim)
        exact = exact[:n]
        verbs = page_verbs(kind, size, self.dim, tiles)
        nbytes = scratch_nbytes(self.rows, self.dim, size)
        room = np.full(nbytes + 2 * GUARD, 0xA5, np.uint8)  # as float32: an ordinary number
        room[GUARD - 8 : GUARD].view(np.int64)[0] = page.ctypes.data  # of the next page
        scratch = room[GUARD:]
        if self.side == "k":
            a = np.zeros((self.rows, wide), np.float32)
            a[:, : self.dim] = rng.standard_normal((self.rows, self.dim))
            out = np.full((self.rows + 1, size), 7, np.float32)
            want, sums = a[:, : self.dim] @ exact.T, np.abs(a[:, : self.dim]) @ np.abs(exact.T)
            got, verb = out[:-1, :n], verbs.score
        else:
            a = rng.random((self.rows, size), np.float32) ** 4
            out = np.full((self.rows + 1, wide), 7, np.float32)
            want, sums = 7 + a[:, :n] @ exact, 7 + a[:, :n] @ np.abs(exact)
            got, verb = out[:-1, : self.dim], verbs.mix
        before = a.copy(), page.copy()
        run_page(verbs, verb, page, n, a, 4 * size, self.rows, self.dim, out, scratch)
        assert (out[-1] == 7).all() and (scratch[nbytes:] == 0xA5).all()
        np.testing.assert_array_equal(before[0], a)
        np.testing.assert_array_equal(before[1], page)
        return got, want, sums.max()

    def check(self, tiles: bool, tolerance: float) -> None:
        got, want, sums = self.result(tiles)
        error = np.abs(got - want).max() / sums
        assert error <= tolerance, f"{self}: {error}"


def filled(name: str) -> tuple[int | None, ...]:
    """Token formats also serve pages that are still being filled."""
    return (None,) if kv_format(name).page_tokens else (None, 1, 13, 32, 77)


def tolerance(name: str, tiles: bool, rows: int, dim: int) -> float:
    kind = kv_format(name)
    if not isinstance(kind, TokenFormat):
        return SIXTEEN_BITS
    if rows <= FEW_ROWS and codes_of(kind, dim) is not None:
        return FLOAT
    return HALVES if tiles and name == "bf16" and dim % 32 == 0 else FLOAT


@pytest.mark.parametrize("tiles", PATHS)
@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize("name", KV_FORMATS)
def test_verbs_equal_products_with_the_decoded_page(name: str, side: Side, tiles: bool) -> None:
    for rows in (*FEW, *MANY):
        for dim in (16, 64, 72, 128):
            for n in filled(name):
                Case(name, side, rows, dim, n).check(tiles, tolerance(name, tiles, rows, dim))


@pytest.mark.parametrize("tiles", PATHS)
@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize(
    "name",
    [
        "int3nsep:32",
        "int3nsep:96",
        "int3nsep-sym:160",
        "int5pchan:256",
        "int3wf:32",
        "int2wfq:96",
        "int4wf:160",
        "int3wf:512",
        "kivi2:96",
        "kivi3-g64:160",
        "kivi4:256",
    ],
)
def test_pages_of_every_length(name: str, side: Side, tiles: bool) -> None:
    for rows in (1, 8, 20, 200):
        for dim in (48, 80, 256, 512):
            Case(name, side, rows, dim).check(tiles, SIXTEEN_BITS)


@pytest.mark.parametrize("tiles", PATHS)
@pytest.mark.parametrize("side", ["k", "v"])
def test_bf16_pages_filled_anyhow(side: Side, tiles: bool) -> None:
    for rows in range(1, 9):
        for dim in (32, 96, 256):
            for n in (1, 31, 33, 127, 128, 300):
                Case("bf16", side, rows, dim, n).check(tiles, HALVES)


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize(
    "name",
    [*("q8_0", "q5_1", "q6_0", "iq4_nl", "int3row", "int6row-asym"), "hqq3:64", "hqq8:128"],
)
def test_rows_of_codes_of_every_length(name: str, side: Side) -> None:
    for rows in (1, 3, 8):
        for dim in (80, 112, 192, 512):
            for n in (5, 128, 300):
                Case(name, side, rows, dim, n).check(AMX, FLOAT)


@pytest.mark.skipif(not AMX, reason="no tile registers")
@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize("name", [*(f"int{bits}nsep" for bits in range(2, 9)), "int3wf", "kivi3"])
def test_tiles_and_byte_products_give_the_same_bits(name: str, side: Side) -> None:
    for rows, dim in ((1, 72), (8, 128), (33, 64)):
        case = Case(name, side, rows, dim)
        np.testing.assert_array_equal(case.result(True)[0], case.result(False)[0])


@pytest.mark.parametrize("name", ["int3nsep", "int8pchan", "q8_0"])
def test_vanishing_and_zero_weights_add_nothing(name: str) -> None:
    kind = ALL_KV_FORMATS[name]
    page = kind.encode(np.ones((1, 128, 64), np.float32), "v")[0]
    for value in (0, 1e-38):
        weights, out = np.full((2, 128), value, np.float32), np.full((2, 64), 7, np.float32)
        verbs = page_verbs(kind, 128, 64)
        scratch = np.zeros(GUARD + scratch_nbytes(2, 64, 128), np.uint8)[GUARD:]
        run_page(verbs, verbs.mix, page, 128, weights, 512, 2, 64, out, scratch)
        assert (out == 7).all()


@pytest.mark.parametrize("name", ["bf16", "int3nsep"])
@pytest.mark.parametrize("side", ["k", "v"])
def test_a_run_of_pages_equals_its_pages_one_by_one(name: str, side: Side) -> None:
    for rows, dim, pages in ((1, 32, 2), (3, 64, 3), (7, 96, 3), (12, 128, 3), (24, 64, 2)):
        _compare_run(name, side, rows, dim, pages)


def _compare_run(name: str, side: Side, rows: int, dim: int, count: int) -> None:
    """The second of two KV heads."""
    kind, rng, size = kv_format(name), np.random.default_rng(rows), 128
    pages = [
        kind.encode(rng.standard_normal((2, size, dim), np.float32), side) for _ in range(count)
    ]
    cells = np.array([page.ctypes.data for page in pages], np.int64)
    verbs, n = page_verbs(kind, size, dim), count * size
    assert verbs.runs or not AMX
    if not verbs.runs:
        return
    verb = verbs.score if side == "k" else verbs.mix
    room = np.zeros(scratch_nbytes(rows, dim, size) + GUARD, np.uint8)
    a = rng.random((rows, dim if side == "k" else n), np.float32)
    whole, single = np.ones((2, rows, n if side == "k" else dim), np.float32)
    rest = (4 * n, rows, dim)
    some = (room[GUARD:], *verbs.parameters)
    run_pages(verb, cells, verbs.head_nbytes, size, n, a, *rest, whole, *some)
    for i in range(count):
        part = slice(i * size, None)
        x, out = (a, single[:, part]) if side == "k" else (a[:, part], single)
        run_pages(verb, cells[i:], verbs.head_nbytes, size, size, x, *rest, out, *some)
    np.testing.assert_allclose(whole, single, rtol=0, atol=1e-5 * np.abs(single).max())
