"""What a small breakage is: one operator, constant or condition of a module's source that becomes another."""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

__all__ = ["Mutant", "mutants_of", "sample"]

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
}


@attrs.frozen(kw_only=True)
class Mutant:
    """One breakage: from byte ``start`` to ``end`` the file ``path`` has ``text`` instead."""

    path: str
    kind: str
    line: int
    start: int
    end: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.kind}"

    def apply(self, source: bytes) -> bytes:
        """The source with it."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """The lines that it changes, without context."""
        before, after = source.decode().splitlines(), self.apply(source).decode().splitlines()
        return "\n".join(
            line for line in difflib.unified_diff(before, after, n=0, lineterm="") if line[:2] not in ("--", "++", "@@")
        )


class _Finder(ast.NodeVisitor):
    """Every place of a module that can be broken, but in annotations, in what only type checkers read, and in text."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path = path
        self.source = source
        self.found: list[Mutant] = []
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def at(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr) and node.end_lineno is not None and node.end_col_offset is not None
        start = self._lines[node.lineno - 1] + node.col_offset
        return start, self._lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, end = self.at(node)
        return self.source[start:end].decode()

    def add(self, kind: str, node: ast.expr, start: int, end: int, text: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        self.found.append(Mutant(path=self.path, kind=kind, line=line, start=start, end=end, text=text))

    def between(self, kind: str, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Break the operator between two operands."""
        start, end = self.at(left)[1], self.at(right)[0]
        words = r"\s+".join(old.split())
        pattern = rf"\b{words}\b" if old[0].isalpha() else re.escape(old)
        text, count = re.subn(pattern, new, self.source[start:end].decode(), count=1)
        if count:
            self.add(kind, left, start, end, text)

    # ---- what is left as it is ---------------------------------------------------------------------

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and "TypeAlias" not in ast.dump(node.annotation):
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        return

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.visit(node.args)
        for statement in [*node.decorator_list, *node.body]:
            self.visit(statement)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_keyword(self, node: ast.keyword) -> None:
        # Whether a TypedDict is total, only type checkers read.
        if node.arg != "total":
            self.visit(node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        return

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        return

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        # A slice is an index, or a type's parameters.
        if not isinstance(node.slice, ast.Tuple | ast.BinOp):
            self.visit(node.slice)

    # ---- what is broken ----------------------------------------------------------------------------

    def visit_If(self, node: ast.If | ast.IfExp | ast.While) -> None:
        if "TYPE_CHECKING" in ast.dump(node.test):
            return
        start, end = self.at(node.test)
        negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        if isinstance(node, ast.While) and isinstance(node.test, ast.Constant):
            for statement in node.body:
                self.visit(statement)
            return
        if not isinstance(node, ast.While) and not negated and not isinstance(node.test, ast.Compare):
            self.add("condition negated", node.test, start, end, f"not ({self.text(node.test)})")
        self.generic_visit(node)

    visit_IfExp = visit_If  # type: ignore[assignment]
    visit_While = visit_If  # type: ignore[assignment]

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for index, op in enumerate(node.ops):
            if type(op) in _COMPARISONS:
                self.between("comparison", operands[index], operands[index + 1], *_COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        if len(node.values) == 2:
            self.between(f"{old} to {new}", node.values[0], node.values[1], old, new)
        start, end = self.at(node)
        for index in range(len(node.values)):
            rest = [self.text(value) for at, value in enumerate(node.values) if at != index]
            self.add(
                "part of a condition dropped",
                node,
                start,
                end,
                "(" + f" {old} ".join(f"({part})" for part in rest) + ")",
            )
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            start, end = self.at(node)
            self.add("not dropped", node, start, end, f"bool({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = isinstance(node.left, ast.Constant | ast.JoinedStr) and not isinstance(
            getattr(node.left, "value", ""), int | float
        )
        if type(node.op) in _ARITHMETIC and not text:
            self.between("operator", node.left, node.right, *_ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.op, ast.Add | ast.Sub):
            old, new = ("+=", "-=") if isinstance(node.op, ast.Add) else ("-=", "+=")
            self.between("operator", node.target, node.value, old, new)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value, (start, end) = node.value, self.at(node)
        if isinstance(value, bool):
            self.add("constant", node, start, end, str(not value))
        elif isinstance(value, int):
            self.add("constant", node, start, end, str(value + 1 if value < 17 else value * 10))
        elif isinstance(value, float):
            self.add("constant", node, start, end, str(value * 10 if value else 1.0))


def mutants_of(root: Path, path: str) -> list[Mutant]:
    """All breakages of one file."""
    source = (root / path).read_bytes()
    return [mutant for mutant in _found(path, source) if _is_program(mutant.apply(source))]


def _found(path: str, source: bytes) -> list[Mutant]:
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return [mutant for mutant in finder.found if mutant.apply(source) != source]


def _is_program(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _one_of(root: Path, path: str, rng: random.Random) -> Mutant | None:
    source = (root / path).read_bytes()
    found = _found(path, source)
    rng.shuffle(found)
    return next((mutant for mutant in found if _is_program(mutant.apply(source))), None)


def sample(root: Path, rooms: dict[str, list[str]], count: int, seed: int) -> Iterator[Mutant]:
    """So many breakages, by a seed: from each room in turn, one file of it and one place in that.

    Args:
        rooms: The files of each room.
    """
    rng = random.Random(seed)
    left = {room: rng.sample(files, len(files)) for room, files in rooms.items()}
    chosen = 0
    while chosen < count and any(left.values()):
        for room in rng.sample(sorted(left), len(left)):
            found = None
            while found is None and left[room]:
                found = _one_of(root, left[room].pop(), rng)
            if found is not None:
                yield found
                chosen += 1
                if chosen == count:
                    return
