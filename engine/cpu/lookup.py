"""Tables of 16 float32 in a register: AVX-512's vpermps, lane by lane elsewhere."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from engine.cpu.host import AVX512
from engine.cpu.simd import f32x16, intrinsic, u32x16

_I32 = ir.IntType(32)


def _permute(builder: Any, table: Any, indices: Any) -> Any:
    kind = ir.FunctionType(f32x16.llvm, [f32x16.llvm, u32x16.llvm])
    name = "llvm.x86.avx512.permvar.sf.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [table, indices])


def _portable(builder: Any, table: Any, indices: Any) -> Any:
    found = ir.Constant(f32x16.llvm, ir.Undefined)
    for lane in range(16):
        index = builder.extract_element(indices, _I32(lane))
        found = builder.insert_element(found, builder.extract_element(table, index), _I32(lane))
    return found


def _look_up(emit_body: Any) -> Any:
    @intrinsic
    def look_up(typing_context, table, indices):
        def emit(context, builder, signature, args):
            return emit_body(builder, *args)

        return f32x16(f32x16, u32x16), emit

    return look_up


look_up_portable = _look_up(_portable)
look_up = _look_up(_permute) if AVX512 else look_up_portable
"""table[indices[i]] in lane i, for indices below 16."""
