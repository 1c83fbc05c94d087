"""What is broken: one place of a module's syntax tree at a time. Wording, and what type checkers alone read, stay."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import NamedTuple

_PAIRS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot)),
    *((ast.And, ast.Or), (ast.BitAnd, ast.BitOr), (ast.LShift, ast.RShift), (ast.Add, ast.Sub)),
    (ast.Mult, ast.FloorDiv),
]
_SWAPS = {
    **{one: other for pair in _PAIRS for one, other in (pair, pair[::-1])},
    ast.Mod: ast.FloorDiv,
    ast.BitXor: ast.BitAnd,
}
_DROPPED = (ast.Expr, ast.AugAssign, ast.Raise, ast.Delete, ast.Continue, ast.Break)
_LEFT_ALONE = {"annotation", "returns", "decorator_list", "type_comment"}


class Mutant(NamedTuple):
    line: int
    change: str
    source: Callable[[], str]


def mutants_of(source: str) -> list[Mutant]:
    """Every way to break a module, in the order of its text."""
    tree = ast.parse(source)
    return [
        Mutant(line, _said(whole, put, old, new), _with(tree, put, old, new))
        for line, whole, put, old, new in _places(tree, 1)
    ]


_Put = Callable[[ast.AST], None]


def _said(whole: ast.AST, put: _Put, old: ast.AST, new: ast.AST) -> str:
    changed = ast.unparse(new) if whole is old else _with(whole, put, old, new)()
    return f"{ast.unparse(whole)}  ->  {changed}"


def _with(tree: ast.AST, put: _Put, old: ast.AST, new: ast.AST) -> Callable[[], str]:
    def source() -> str:
        put(new)
        text = ast.unparse(tree)
        put(old)
        return text

    return source


def _places(parent: ast.AST, line: int) -> Iterator[tuple[int, ast.AST, _Put, ast.AST, ast.AST]]:
    for field, value in ast.iter_fields(parent):
        if field in _LEFT_ALONE:
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or _is_left_alone(node):
                continue
            here = getattr(node, "lineno", line)

            def put(new: ast.AST, field: str = field, index: int = index) -> None:
                there = getattr(parent, field)
                if isinstance(there, list):
                    there[index] = new
                else:
                    setattr(parent, field, new)

            # A number says little without what it stands in; a statement stands in too much.
            whole = parent if type(node) in _SWAPS or not isinstance(parent, (ast.stmt, ast.mod)) else node
            for new in _replacements(node, is_condition=field == "test" or field == "ifs"):
                yield here, whole, put, node, new
            yield from _places(node, here)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)  # a docstring
    subject = node.test if isinstance(node, ast.If) else node.targets[0] if isinstance(node, ast.Assign) else None
    return isinstance(node, ast.JoinedStr) or (isinstance(subject, ast.Name) and subject.id == "TYPE_CHECKING")


def _replacements(node: ast.AST, is_condition: bool) -> Iterator[ast.AST]:
    if type(node) in _SWAPS:
        yield _SWAPS[type(node)]()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Return) and node.value is not None and getattr(node.value, "value", 0) is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, _DROPPED) or (isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name)):
        yield ast.Pass()
    elif is_condition and isinstance(node, (ast.Name, ast.Attribute, ast.Call)):
        yield ast.UnaryOp(ast.Not(), node)
