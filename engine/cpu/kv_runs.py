"""What verbs for runs of pages have in common; see `engine.cpu.kv_verbs` for their signatures."""

from __future__ import annotations

from engine.cpu.jit import inlined
from engine.cpu.simd import load_i64, store_i64


@inlined
def announce(cell, ahead, stop, offset, following, scratch):
    """Name the page `ahead` cells further as the next, or `following` where the cells end."""
    further = cell + 8 * ahead
    store_i64(scratch - 8, load_i64(further) + offset if further < stop else following)
