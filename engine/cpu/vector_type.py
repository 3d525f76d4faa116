"""`simd.Vector` as a Numba type with its operators; imported once something is compiled."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import models, overload, register_model

from engine.cpu.simd import OPERATORS, Vector


class VectorType(Vector, types.Type):
    """A type whose data model is an LLVM vector."""

    def __init__(self, element: str, lanes: int) -> None:
        Vector.__init__(self, element, lanes)
        types.Type.__init__(self, name=f"{element}x{lanes}")


@register_model(VectorType)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: VectorType) -> None:
        super().__init__(manager, vector, vector.llvm)


def _overload_operator(symbol: Any, binary: Any) -> None:
    @overload(symbol, inline="always")
    def vector_operator(x, y):
        if isinstance(x, VectorType):
            return lambda x, y: binary(x, y)
        return None


for _symbol, _binary in OPERATORS.items():
    _overload_operator(_symbol, _binary)
