"""Tables of 16 entries in a register: AVX-512's permutations, lane by lane elsewhere."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic
from engine.cpu.host import AVX512, VNNI
from engine.cpu.simd import f32x16, u8x32, u8x64, u32x16

_I32 = ir.IntType(32)


def _permute(builder: Any, table: Any, indices: Any) -> Any:
    kind = ir.FunctionType(f32x16.llvm, [f32x16.llvm, u32x16.llvm])
    name = "llvm.x86.avx512.permvar.sf.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [table, indices])


def _permute_bytes(builder: Any, table: Any, indices: Any) -> Any:
    kind = ir.FunctionType(table.type, [table.type] * 2)
    name = f"llvm.x86.{'avx2.pshuf.b' if table.type.count == 32 else 'avx512.pshuf.b.512'}"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [table, indices])


def _portable(builder: Any, table: Any, indices: Any) -> Any:
    found = ir.Constant(table.type, ir.Undefined)
    for lane in range(table.type.count):
        index = builder.zext(builder.extract_element(indices, _I32(lane)), ir.IntType(64))
        found = builder.insert_element(found, builder.extract_element(table, index), _I32(lane))
    return found


def _look_up(kind: Any, key: Any, emit_body: Any) -> Any:
    @intrinsic
    def look_up(typing_context, table, indices):
        def emit(context, builder, signature, args):
            return emit_body(builder, *args)

        return kind(kind, key), emit

    return look_up


look_up_portable = _look_up(f32x16, u32x16, _portable)
look_up = _look_up(f32x16, u32x16, _permute) if AVX512 else look_up_portable
"""table[indices[i]] in lane i, for indices below 16."""

look_up_bytes_portable = _look_up(u8x32, u8x32, _portable)
look_up_bytes = _look_up(u8x32, u8x32, _permute_bytes) if AVX512 else look_up_bytes_portable
"""The same for bytes; the upper half of the table repeats the lower one."""

look_up_64_portable = _look_up(u8x64, u8x64, _portable)
look_up_64 = _look_up(u8x64, u8x64, _permute_bytes) if VNNI else look_up_64_portable
"""The same for 64 bytes; the table is the same 16 four times."""
