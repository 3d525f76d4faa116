"""What the processor we compile for can do beyond what every LLVM target can."""

from __future__ import annotations

import ctypes
import platform
import sys

from llvmlite import binding

from engine.config import target_processor
from engine.errors import InputError

_ARCH_PRCTL = 158  # x86-64's system call number
_REQUEST_PERMISSION, _TILE_DATA = 0x1023, 18


def _processor() -> tuple[str, str]:
    """Name and features as LLVM writes them."""
    name, features = target_processor()
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return name or binding.get_host_cpu_name(), features


CPU, FEATURES = _processor()
"""What Numba is told to compile for."""


def _has(*features: str) -> bool:
    return {f"+{feature}" for feature in features} <= set(FEATURES.split(","))


def _tiles_permitted() -> bool:
    """Ask Linux for the tile registers, whose 8 KB of state a process must request once."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def _convert_halves() -> None:
    """Without F16C, LLVM leaves float16 to functions that compilers bring along."""
    if platform.machine().lower() not in ("x86_64", "amd64") or _has("f16c"):
        return
    try:
        library = ctypes.CDLL("libgcc_s.so.1")
        for name in ("__extendhfsf2", "__truncsfhf2"):
            address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
            binding.add_symbol(name, address)
    except (OSError, AttributeError):
        raise InputError(
            "this processor has no F16C, and libgcc_s.so.1 of GCC 12 or later is not there either"
        ) from None


_convert_halves()

AVX512 = _has("avx512f")
"""Registers of 64 bytes."""

AVX512DQ = _has("avx512f", "avx512dq")
"""Distances from integers, limits that keep a sign."""

VNNI = _has("avx512f", "avx512bw", "avx512vnni")
"""Products of unsigned and signed bytes, four of them added to each 32-bit lane."""

VBMI = _has("avx512f", "avx512bw", "avx512vbmi")
"""Bytes looked up in two registers."""

AMX = (
    _has("avx512f", "avx512bw", "avx512dq", "amx-tile", "amx-bf16", "amx-int8")
    and _tiles_permitted()
)
"""Tile registers with products of bfloat16 and of byte matrices."""

BF16 = _has("avx512f", "avx512bw", "avx512bf16")
"""Conversion of float32 to bfloat16."""
