"""An adapter that is a class, with state and tools of several kinds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator, Iterator

import snakepit_trio as sp


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Plane(sp.Adapter):
    """Points in a plane."""

    def __init__(self) -> None:
        self.ready = False

    async def setup(self) -> None:
        self.ready = True

    @sp.tool
    def move(self, point: Point, by: int = 1) -> Point:
        return Point(point.x + by, point.y + by)

    @sp.tool(name="is_ready")
    async def readiness(self, ctx: sp.ToolContext, shout: bool = False) -> str:
        return f"{self.ready} {ctx.attempt}".upper() if shout else f"{self.ready} {ctx.attempt}"

    @sp.tool
    def line(self, n: int) -> Iterator[Point]:
        for number in range(n):
            yield Point(number)

    @sp.tool
    async def numbers(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    @staticmethod
    @sp.tool
    def distance(one: Point, other: Point) -> float:
        return math.dist((one.x, one.y), (other.x, other.y))

    @sp.tool
    @classmethod
    def origin(cls, x: int) -> Point:
        return Point(x)

    @sp.tool
    def extras(self, **rest: int) -> dict[str, int]:
        return rest
