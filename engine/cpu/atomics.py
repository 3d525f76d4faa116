"""What threads need of the system: atomic words, a pause, sleep until a word changes; and advice
about memory."""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic, types
from engine.cpu.simd import pointer

_WORD = ir.IntType(64)
_FUTEX_CALL = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine())
_HAS_FUTEX = sys.platform == "linux" and _FUTEX_CALL is not None
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # the private forms: no other process shares the word
_NAP = 100  # microseconds between looks where there is no futex


def _word(builder: Any, address: Any) -> Any:
    # llvmlite's atomic writes still want a typed pointer
    pointer(builder, address)
    return builder.inttoptr(address, _WORD.as_pointer())


def _libc(builder: Any, name: str, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(_WORD, [_WORD] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def atomic_load(typing_context, address):
    """The int64 at `address`; nothing after it is read earlier."""

    def emit(context, builder, signature, args):
        return builder.load_atomic(pointer(builder, args[0]), "seq_cst", 8, typ=_WORD)

    return types.int64(types.int64), emit


@intrinsic
def atomic_store(typing_context, address, value):
    """Write the int64 at `address`; nothing before it is written later."""

    def emit(context, builder, signature, args):
        builder.store_atomic(args[1], _word(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def atomic_add(typing_context, address, value):
    """Add to the int64 at `address`; returns what it was."""

    def emit(context, builder, signature, args):
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def atomic_min(typing_context, address, value):
    """Let the int64 at `address` be `value` if that is less; returns what it was."""

    def emit(context, builder, signature, args):
        return builder.atomic_rmw("min", _word(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def pause(typing_context):
    """Tell the core that this is a waiting loop."""

    def emit(context, builder, signature, args):
        if platform.machine() in ("x86_64", "AMD64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def yield_core(typing_context):
    """Let another thread run on this core."""

    def emit(context, builder, signature, args):
        _libc(builder, "sched_yield", [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def sleep_while(typing_context, address, value):
    """Sleep while the low 32 bits at `address` are those of `value`, or until woken for nothing."""

    def emit(context, builder, signature, args):
        if _HAS_FUTEX:
            words = [_WORD(_FUTEX_CALL), args[0], _WORD(_FUTEX_WAIT), args[1], _WORD(0)]
            _libc(builder, "syscall", words)
        else:
            _libc(builder, "usleep", [_WORD(_NAP)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def wake_all(typing_context, address):
    """Wake the threads that sleep on the word at `address`."""

    def emit(context, builder, signature, args):
        if _HAS_FUTEX:
            words = [_WORD(_FUTEX_CALL), args[0], _WORD(_FUTEX_WAKE), _WORD(1 << 30), _WORD(0)]
            _libc(builder, "syscall", words)
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def advise(typing_context, address, nbytes, advice):
    """Tell the system how memory will be used, `advice` as `mmap.madvise` takes it."""

    def emit(context, builder, signature, args):
        _libc(builder, "madvise", list(args))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit
