"""Tools for an agent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import snakepit_trio as sp


@dataclass
class Point:
    x: int
    y: int


@sp.tool(description="Sums two numbers.", idempotent=True)
def add(a: int, b: int) -> int:
    print("adding")
    return a + b


@sp.tool
def point(x: int, y: int) -> Point:
    return Point(x, y)


@sp.tool
def describe(name: str) -> dict[str, str]:
    return {"name": name}


@sp.tool
def fail(message: str) -> None:
    raise ValueError(message)


@sp.tool
def die() -> None:
    os._exit(9)


@sp.tool
def count(n: int) -> Iterator[int]:
    yield from range(n)


@sp.tool
def flood() -> Iterator[str]:
    while True:
        yield "x" * 100_000


@sp.tool
def wait(ctx: sp.ToolContext, path: str) -> None:
    Path(path).write_text("begun")
    while not ctx.cancelled:
        time.sleep(0.01)
    Path(path).write_text("cancelled")
