"""The numbers that have a name: limits, sizes, times, what stands for what on the wire, and the defaults of parameters.

A limit that has become another is none that a test at its edge would notice, since that takes it from the code.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import snakepit_trio

PACKAGE = Path(snakepit_trio.__file__).parent
KEPT = Path(__file__).with_name("numbers.txt")
#: What an expression of numbers alone is made of.
_NUMERIC = (
    ast.Constant, ast.UnaryOp, ast.BinOp, ast.Tuple, ast.List, ast.Dict, ast.Name, ast.operator, ast.unaryop, ast.expr_context,
)  # fmt: skip


class _Finder(ast.NodeVisitor):
    """The named numbers of one module."""

    def __init__(self) -> None:
        self.within: list[str] = []
        self.values: dict[str, object] = {}
        self.found: list[str] = []

    def add(self, name: str, value: ast.expr | None) -> None:
        if value is None or not all(isinstance(node, _NUMERIC) for node in ast.walk(value)):
            return
        try:
            made = eval(compile(ast.Expression(value), "numbers", "eval"), {"__builtins__": {}}, self.values)
        except NameError:
            return
        self.values[name] = made
        if any(type(number) in (int, float, bool) for number in _flat(made)):
            self.found.append(f"{'.'.join([*self.within, name])} = {made!r}")

    def assign(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, part in zip(target.elts, value.elts, strict=True):
                self.assign(one, part)
        elif isinstance(target, ast.Name) and not target.id.startswith("__"):
            self.add(target.id, value)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.assign(node.target, node.value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.within.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.within.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        taken = [*node.args.posonlyargs, *node.args.args]
        self.within.append(f"{node.name}()")
        for argument, default in (
            *zip(taken[len(taken) - len(node.args.defaults) :], node.args.defaults, strict=True),
            *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
        ):
            self.add(argument.arg, default)
        self.within.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from _flat([*value, *value.values()])
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def lines() -> list[str]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        if "generated" not in path.parts:
            finder = _Finder()
            finder.visit(ast.parse(file.read_text()))
            found += [f"{path}: {line}" for line in finder.found]
    return found


def test_no_number_changes_unnoticed() -> None:
    assert KEPT.read_text().splitlines() == lines(), f"if it is meant to: python -m {__name__} > tests/unit/{KEPT.name}"


if __name__ == "__main__":
    print(*lines(), sep="\n")
