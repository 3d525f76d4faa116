"""Blocks of a pool are nobody else's while somebody holds them."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint import Tensor
from engine.cpu import CpuOps
from engine.cpu.memory import Arena, Pool, file_pages, pooled
from engine.ops import Ops, Weight


def test_a_block_serves_again_only_when_nothing_holds_it() -> None:
    pool = Pool()
    first = pool.take((10, 10))
    view, address = first[3:].reshape(-1), first.ctypes.data
    del first
    second = pool.take((10, 10))
    assert second.ctypes.data != address  # the view still holds the block
    del view
    gc.collect()
    assert pool.take((10, 10)).ctypes.data == address


def test_arrays_start_on_a_cache_line_and_know_their_pool() -> None:
    pool, arena = Pool(), Arena()
    for shape in ((1,), (3, 5), (1000,)):
        taken = pool.take(shape)
        assert taken.ctypes.data % 64 == 0 and taken.shape == shape
        assert pooled(taken) and pooled(taken[:1]) and not pooled(taken.copy())
        kept = arena.take(shape)
        assert kept.ctypes.data % 64 == 0 and kept.shape == shape and not kept.any()


def test_what_an_arena_gives_does_not_overlap() -> None:
    arena = Arena()
    arrays = [arena.take((size,)) for size in (1, 100, 1 << 20, 3)]
    for value, array in enumerate(arrays):
        array[:] = value + 1
    assert all((array == value + 1).all() for value, array in enumerate(arrays))


def test_only_pages_of_files_may_be_dropped(tmp_path: Path) -> None:
    content = np.arange(100_000, dtype=np.uint8)
    (tmp_path / "data").write_bytes(content.tobytes())
    with (tmp_path / "data").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint8)[5000:90000]
    part = data[20000:50000].reshape(-1, 8)
    first, nbytes = file_pages(data, part)
    assert first % mmap.PAGESIZE == 0 and first <= part.ctypes.data
    # no further than the pages of the data
    assert data.ctypes.data - first < mmap.PAGESIZE
    assert part.ctypes.data + part.nbytes <= first + nbytes <= data.ctypes.data + data.nbytes
    mapped.madvise(mmap.MADV_DONTNEED)
    np.testing.assert_array_equal(data, content[5000:90000])
    assert file_pages(content, content[:10])[1] == 0


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_results_of_a_recording_are_the_callers(cap: float) -> None:
    ops: Ops = CpuOps(2)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((77, 40)).astype(np.float32)
    matrix: Weight = ops.upload(Tensor("m", "F32", values.shape, values.view(np.uint8)))
    x = np.zeros((1, 40), np.float32)

    def body() -> np.ndarray:
        y = ops.linear(matrix, x)
        if cap:
            ops.softcap_(y, cap)
        return y

    run, held, wanted = ops.recorded(body), [], []
    for _ in range(5):
        x[:] = rng.standard_normal(x.shape)
        held.append(run())
        wanted.append(held[-1].copy())
    np.testing.assert_array_equal(held, wanted)
    assert len({bytes(y) for y in wanted}) == 5
