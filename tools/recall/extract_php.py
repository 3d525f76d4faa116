"""PHP functions, parsed by tree-sitter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tools.extras import extra
from tools.recall.function import Function

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

_NAMED = ("function_definition", "method_declaration")


def functions(text: str, file: str) -> list[Function]:
    """Every named function and method of `text`, in the order of the source.

    A body is the lines strictly between those that hold its braces.  The parser forgives errors: it
    leaves out what it cannot read.
    """
    lines = text.split("\n")
    found = []
    for node in _walk(_parser().parse(text.encode()).root_node):
        name, block = node.child_by_field_name("name"), node.child_by_field_name("body")
        # an abstract method has no body
        if name is not None and name.text is not None and block is not None:
            opening, closing = block.start_point.row, block.end_point.row
            body = tuple(lines[opening + 1 : closing])
            anchor = "\n".join(lines[node.start_point.row : opening + 1])
            found.append(Function(name.text.decode(), opening + 2, anchor, body, file))
    return found


def _parser() -> Parser:
    tree_sitter, tree_sitter_php = extra("tree_sitter"), extra("tree_sitter_php")
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_php.language_php()))


def _walk(root: Node) -> Iterator[Node]:
    todo = [root]
    while todo:
        node = todo.pop()
        if node.type in _NAMED:
            yield node
        todo += reversed(node.children)
