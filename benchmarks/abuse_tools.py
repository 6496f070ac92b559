"""A tool with a schema that is short, and hard to check: each of its parts refers to the next eight times."""

from __future__ import annotations

import attrs

import snakepit_trio as sp

LEVELS, WIDTH = 7, 8


def _parts() -> type:
    part: type = int
    for level in range(LEVELS):
        part = attrs.make_class(f"Part{level}", {f"p{i}": attrs.field(type=part, default=None) for i in range(WIDTH)})
    return part


@sp.tool
def fine() -> str:
    return "fine"


def hard(value: object) -> str:
    return "taken"


hard.__annotations__["value"] = _parts()
hard = sp.tool(hard)
