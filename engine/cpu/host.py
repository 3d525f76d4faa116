"""What the host's processor can do beyond what every LLVM target can."""

from __future__ import annotations

import ctypes
import platform
import sys

from llvmlite import binding

_ARCH_PRCTL = 158  # x86-64's system call number
_REQUEST_PERMISSION, _TILE_DATA = 0x1023, 18


def _has(*features: str) -> bool:
    found = binding.get_host_cpu_features()
    return all(found.get(feature, False) for feature in features)


def _tiles_permitted() -> bool:
    """Ask Linux for the tile registers, whose 8 KB of state a process must request once."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


AVX512 = _has("avx512f")
"""Registers of 64 bytes."""

VNNI = _has("avx512f", "avx512bw", "avx512vnni")
"""Products of unsigned and signed bytes, four of them added to each 32-bit lane."""

AMX = _has("avx512f", "avx512bw", "amx-tile", "amx-bf16", "amx-int8") and _tiles_permitted()
"""Tile registers with products of bfloat16 and of byte matrices."""
