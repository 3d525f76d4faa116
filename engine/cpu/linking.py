"""Object code, linked into this process by LLVM."""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any

from llvmlite import binding

from engine.cpu.deferred import compiler

_ENGINES: list[binding.ExecutionEngine] = []

# Functions of Numba's that code names: in either case something of C's or Python's serves as well.
_CALLED = {"numba_frexp": "frexp", "numba_ldexp": "ldexp"}
# Only errors call these, and no kernel raises any.
_ERRORS = (
    "numba_do_raise", "numba_gil_ensure", "numba_gil_release",
    "numba_runtime_build_excinfo_struct", "numba_unpickle",
)  # fmt: skip
_OTHERS = re.compile(rb"(?<=\0)(?:numba_|__svml_)\w+(?=\0)")


def _prepare() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    # Numba's runtime has it and is far slower to set up
    _define("NRT_Free", ctypes.pythonapi.PyMem_Free)
    if "numba" in sys.modules:
        return
    library = ctypes.CDLL(None)
    for name, of_c in _CALLED.items():
        _define(name, getattr(library, of_c))
    for name in _ERRORS:
        _define(name, library.abort)


def _define(name: str, function: Any) -> None:
    binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)


_prepare()
_KNOWN = {name.encode() for name in (*_CALLED, *_ERRORS)}


def linked(code: bytes, symbol: str) -> int:
    """The address of a function in object code, which stays for as long as the process lives."""
    if set(_OTHERS.findall(code)) - _KNOWN:
        compiler()  # brings the functions along
    target = binding.Target.from_default_triple().create_target_machine(jit=True)
    # one for each verb: functions that several call are in the code of each
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return engine.get_function_address(symbol)
