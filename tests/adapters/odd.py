"""Tools that are not plain functions."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import snakepit_trio as sp


class Greeter:
    def hello(self, name: str) -> str:
        """Greet somebody."""
        return f"hello {name}"

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def later(self, x: int = 3) -> int:
        return x

    def __call__(self, a: int) -> int:
        return -a


def power(base: int, exponent: int) -> int:
    """Base to the exponent."""
    return int(base**exponent)


root = sp.tool(math.sqrt)
square = sp.tool(name="square")(functools.partial(power, exponent=2))
two_to = sp.tool(name="two_to", idempotent=True)(functools.partial(power, 2))
cached = sp.tool(functools.lru_cache(power))
hello = sp.tool(Greeter().hello)
count = sp.tool(Greeter().count)
later = sp.tool(Greeter().later)
negative = sp.tool(name="negative")(Greeter())


class Sums(sp.Adapter):
    """An adapter's class with such tools, which have no ``self``."""

    root = staticmethod(sp.tool(math.sqrt))
    square = staticmethod(sp.tool(name="square")(functools.partial(power, exponent=2)))
