"""JavaScript functions, parsed by esprima (ECMAScript 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.errors import InputError
from tools.extras import extra
from tools.recall.function import Function

_FUNCTIONS = ("FunctionDeclaration", "FunctionExpression", "ArrowFunctionExpression")


def functions(text: str, file: str) -> list[Function]:
    """Every function of `text` that has a name and a block for a body, in the order of the tree.

    The name is the function's own, or that of the variable, assignment target, object key or method
    it is the value of.  A body is the lines strictly between those that hold its braces.
    Raises InputError when `text` is not JavaScript that esprima can read.
    """
    lines = text.split("\n")
    found = []
    for node, given in _walk(_parse(text, file)):
        name = node.id.name if getattr(node, "id", None) else given
        if name and node.body.type == "BlockStatement":
            # esprima's own line numbers also count U+2028, which ends no line in the corpus
            opening = text.count("\n", 0, node.body.range[0])
            closing = text.count("\n", 0, node.body.range[1] - 1)
            body = tuple(lines[opening + 1 : closing])
            anchor = "\n".join(lines[text.count("\n", 0, node.range[0]) : opening + 1])
            found.append(Function(name, opening + 2, anchor, body, file))
    return found


def _parse(text: str, file: str) -> Any:
    """The syntax tree: as a module, else as a script."""
    esprima = extra("esprima")
    if text.startswith("#!"):
        text = "//" + text[2:]
    options = {"range": True, "tolerant": True}
    try:
        try:
            return esprima.parseModule(text, options)
        except esprima.Error:
            return esprima.parseScript(text, options)
    except esprima.Error as error:
        raise InputError(f"{file}: not JavaScript up to ECMAScript 2017: {error}") from None
    except RecursionError:
        raise InputError(f"{file}: JavaScript nested too deeply") from None


def _walk(tree: Any) -> Iterator[tuple[Any, str | None]]:
    """Functions in pre-order, each with the name that its place gives it."""
    todo: list[tuple[Any, str | None]] = [(tree, None)]
    while todo:
        node, name = todo.pop()
        if node.type in _FUNCTIONS:
            yield node, name
        children = []
        for field, value in vars(node).items():
            for child in value if isinstance(value, list) else [value]:
                if hasattr(child, "type") and hasattr(child, "range"):
                    children.append((child, _name_from_place(node, field)))
        todo += reversed(children)


def _name_from_place(parent: Any, field: str) -> str | None:
    """The name that `parent` gives to its child `field`, if any."""
    if parent.type == "VariableDeclarator" and field == "init":
        return _name(parent.id)
    if parent.type == "AssignmentExpression" and field == "right":
        left = parent.left
        return _name(left.property if left.type == "MemberExpression" else left)
    if parent.type in ("Property", "MethodDefinition") and field == "value":
        return _name(parent.key)
    return None


def _name(node: Any) -> str | None:
    """What `node` is called: also in brackets, as the source calls `jQuery.fn[ name ]` "name"."""
    if node.type == "Literal":
        return str(node.value)
    return node.name if node.type == "Identifier" else None
