"""Which differences between two schemas matter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snakepit_trio.tools.equivalence import equivalent

POINT: dict[str, Any] = {
    "title": "move",
    "type": "object",
    "properties": {
        "title": {"type": "string", "description": "of the window"},
        "x": {"type": "integer", "default": 1},
        "unit": {"enum": ["px", "em", {"default": 1}]},
        "to": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Place"}]},
    },
    "required": ["title", "x"],
    "$defs": {"Place": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "number"}]}},
}


def changed(**changes: Any) -> dict[str, Any]:
    """The schema with other properties or other parts."""
    made: dict[str, Any] = json.loads(json.dumps(POINT))
    for name, value in changes.items():
        part = made["properties"] if name in made["properties"] else made
        part[name] = value
    return made


@pytest.mark.parametrize(
    "other",
    [
        POINT,
        dict(reversed(POINT.items())),
        changed(x={"default": 7, "type": "integer", "description": "where"}),
        changed(unit={"enum": [{"default": 1}, "em", "px"]}),
        changed(required=["x", "title"]),
        changed(to={"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]}),
        changed(**{"$comment": "made at 12:00"}),
    ],
)
def test_what_does_not(other: dict[str, Any]) -> None:
    assert equivalent(json.dumps(POINT), json.dumps(other, indent=1))


@pytest.mark.parametrize(
    "other",
    [
        {},
        changed(x={"type": "number", "default": 1}),
        # A parameter of that name, and no annotation.
        changed(title={"type": "integer"}),
        changed(required=["x"]),
        changed(unit={"enum": ["px", "em", {"default": 2}]}),
        changed(additionalProperties=False),
        changed(**{"$defs": {"Place": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "integer"}]}}}),
        [],
        None,
    ],
)
def test_what_does(other: Any) -> None:
    assert not equivalent(json.dumps(POINT), json.dumps(other))


def test_what_can_not_be_read_is_like_nothing_but_itself() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    for text in ("", "{", deep, "nul"):
        assert equivalent(text, text)
        assert not equivalent(text, "{}")
        assert not equivalent("{}", text)


def test_what_is_long_or_deep_is_like_nothing_but_itself() -> None:
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"anyOf": [deep, {"type": "null"}]}
    for schema in (deep, {"enum": [str(number) for number in range(50_000)]}):
        text = json.dumps(schema)
        assert equivalent(text, text)
        assert not equivalent(text, json.dumps(schema, indent=1))
