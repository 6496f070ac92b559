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


def nested(levels: int, **more: Any) -> str:
    schema: dict[str, Any] = {"type": "integer", **more}
    for _ in range(levels):
        schema = {"items": schema}
    return json.dumps(schema)


def test_the_levels_that_are_looked_at() -> None:
    for levels, same in ((1, True), (63, True), (64, False)):
        assert equivalent(nested(levels), nested(levels, title="another")) is same
        assert not equivalent(nested(levels), nested(levels, minimum=1))


def test_the_length_that_is_looked_at() -> None:
    for length, same in ((1024, True), (1025, False)):
        text = json.dumps({"title": "x" * (256 * length - len('{"title": ""}'))})
        assert equivalent(text, "{}") is equivalent("{}", text) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        # Annotations of a part, wherever that stands; below names everything is a name.
        ({"items": {"title": "a", "type": "integer"}}, {"items": {"type": "integer"}}, True),
        ({"not": {"title": "a"}}, {"not": {}}, True),
        *(
            ({name: {"title": {"title": "a"}}}, {name: {"title": {}}}, True)
            for name in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
        ),
        ({"properties": {"title": {}}}, {"properties": {}}, False),
        ({"properties": 3}, {"properties": 3, "title": "a"}, True),
        ({"const": {"title": "a"}}, {"const": {}}, False),
        ({"enum": [{"title": "a"}]}, {"enum": [{}]}, False),
        # No order, whatever the order of keys in the items; but "items" has one.
        ({"enum": [{"a": 1, "b": 2}, {"a": 2, "c": 1}]}, {"enum": [{"c": 1, "a": 2}, {"b": 2, "a": 1}]}, True),
        ({"type": ["string", "null"]}, {"type": ["null", "string"]}, True),
        ({"oneOf": [{"type": "null"}, {}]}, {"oneOf": [{}, {"type": "null"}]}, True),
        ({"allOf": [{"type": "null"}, {}]}, {"allOf": [{}, {"type": "null"}]}, True),
        ({"prefixItems": [{"type": "null"}, {}]}, {"prefixItems": [{}, {"type": "null"}]}, False),
        ({"required": "a"}, {"required": "a", "$comment": ""}, True),
    ],
)
def test_each_word_of_a_schema(one: Any, other: Any, same: bool) -> None:
    assert equivalent(json.dumps(one), json.dumps(other)) is same
    assert equivalent(json.dumps(other), json.dumps(one)) is same
