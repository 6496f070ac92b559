"""Measures Python source files: size, functions, nesting, cyclomatic complexity, the longest function.

CPU-bound and free of side effects, so each call may be run again when its worker dies.

    snakepit call code_metrics measure '{"path": "code_metrics.py"}'
    snakepit map code_metrics measure *.py
"""

from __future__ import annotations

import ast
import tokenize
from typing import Any

import snakepit_trio as sp

_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.IfExp, ast.ExceptHandler, ast.Assert, ast.match_case)
_NESTING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.With, ast.AsyncWith, ast.Match)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def complexity(node: ast.AST) -> int:
    """McCabe's number: one, and one for each point at which the path divides."""
    count = 1
    for child in ast.walk(node):
        if isinstance(child, _BRANCHES):
            count += 1
        elif isinstance(child, ast.BoolOp):
            count += len(child.values) - 1
        elif isinstance(child, ast.comprehension):
            count += 1 + len(child.ifs)
    return count


def nesting(node: ast.AST, depth: int = 0) -> int:
    """How deep blocks stand inside one another."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        deepest = max(deepest, nesting(child, depth + isinstance(child, _NESTING)))
    return deepest


@sp.tool(idempotent=True)
def measure(path: str) -> dict[str, Any]:
    """Parse one Python file and measure it."""
    with tokenize.open(path) as file:
        source = file.read()
    tree = ast.parse(source, path)
    functions = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)]
    longest = max(functions, key=lambda f: (f.end_lineno or f.lineno) - f.lineno, default=None)
    knottiest = max(functions, key=complexity, default=None)
    return {
        "path": path,
        "lines": source.count("\n") + 1,
        "functions": len(functions),
        "classes": sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree)),
        "complexity": sum(map(complexity, functions)),
        "nesting": nesting(tree),
        "longest": None
        if longest is None
        else {"name": longest.name, "lines": (longest.end_lineno or longest.lineno) - longest.lineno + 1},
        "knottiest": None if knottiest is None else {"name": knottiest.name, "complexity": complexity(knottiest)},
    }
