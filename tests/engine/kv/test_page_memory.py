"""Pages in shared blocks: nobody else's while somebody has them, and nobody's for long after."""

from __future__ import annotations

import gc

from engine.kv.page_memory import PageMemory

SHAPE = (3, 5000)


def test_pages_are_zeros_on_cache_lines_that_do_not_overlap() -> None:
    memory = PageMemory()
    pages = [memory.take(shape) for shape in [SHAPE, (1, 1), SHAPE, (2, 3 << 20), SHAPE] * 3]
    for value, page in enumerate(pages):
        assert page.ctypes.data % 64 == 0 and page.dtype == "u1" and not page.any()
        page[:] = value + 1
    assert all((page == value + 1).all() for value, page in enumerate(pages))


def test_a_place_serves_again_only_when_nothing_has_it_and_is_zeros_then() -> None:
    memory = PageMemory()
    kept, page = memory.take(SHAPE), memory.take(SHAPE)
    kept[:] = page[:] = 7
    view, address = page[1:], page.ctypes.data
    del page
    assert memory.take(SHAPE).ctypes.data != address
    del view
    gc.collect()
    again = memory.take(SHAPE)
    assert again.ctypes.data == address and not again.any() and (kept == 7).all()


def test_pages_side_by_side_and_a_block_that_goes_with_its_last() -> None:
    memory = PageMemory()
    pages = [memory.take(SHAPE) for _ in range(1000)]
    blocks = memory._blocks[pages[0].nbytes]
    assert len(blocks) == 4  # 15 MB in all
    # the oldest go first
    del pages[:700]
    gc.collect()
    assert len(blocks) == 2
    pages += [memory.take(SHAPE) for _ in range(100)]
    assert len(blocks) == 2
    pages.clear()
    gc.collect()
    assert len(blocks) == 0
