"""Python functions, by the interpreter's own parser."""

from __future__ import annotations

import ast
import warnings

from engine.errors import InputError
from tools.recall.function import Function


def functions(text: str, file: str) -> list[Function]:
    """Every function and method of `text`, nested ones too, breadth first.

    A body runs from its first statement, the docstring if there is one, to its last line.
    Raises InputError when `text` is not Python.
    """
    lines = text.split("\n")
    found = []
    for node in ast.walk(_parse(text, file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start, end = _first_line(node.body[0]), node.body[-1].end_lineno
            body = tuple(lines[start - 1 : end])
            anchor = "\n".join(lines[node.lineno - 1 : max(node.lineno, start - 1)])
            found.append(Function(node.name, start, anchor, body, file))
    return found


def _parse(text: str, file: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            # what the source does badly is its author's business
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"{file}, line {error.lineno}: not Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{file}: not Python: {str(error) or 'nested too deeply'}") from None


def _first_line(statement: ast.stmt) -> int:
    """The line a statement begins on, its decorators included."""
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])
