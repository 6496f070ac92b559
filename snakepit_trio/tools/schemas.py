"""Arguments against a tool's JSON Schema, before they are sent.

The worker checks everything, against the tool's own type hints. The host knows only the schema from the handshake, which
has no words for bytes, dates or arrays of numbers as Python has them; so what is refused here is what is wrong beyond doubt:
a missing or unknown argument, a list where a number belongs. What this lets pass, the worker may still refuse.

JSON Schema: https://json-schema.org/draft/2020-12/json-schema-core
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from snakepit_trio.errors import InvalidParameter

__all__ = ["compile_check"]

#: Says what is wrong with a value, as a path below it and the words for it; None when nothing is.
_Check = Callable[[Any], tuple[str, str] | None]

#: How a value of each of JSON's types is called, by its Python type; others are not judged.
_NAMES: Mapping[type, str] = {
    type(None): "null",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "array",
    tuple: "array",
    dict: "object",
    bytes: "bytes",
    bytearray: "bytes",
}
#: Which of those may stand for a schema's type.
_FITS: Mapping[str, frozenset[str]] = {
    "integer": frozenset({"int", "float"}),
    "number": frozenset({"int", "float"}),
    "string": frozenset({"str"}),
    "boolean": frozenset({"bool"}),
    "null": frozenset({"null"}),
    "array": frozenset({"array"}),
    "object": frozenset({"object"}),
}
_WORDS = {"integer": "int", "number": "float", "string": "str", "boolean": "bool"}
#: How many of the allowed values an error names, and how many characters of each.
_CHOICES = 20
_SHOWN = 60
#: Of longer lists only so many items are looked at here.
_ITEMS = 100


def compile_check(tool: str, schema_text: str) -> Callable[[Mapping[str, Any]], None] | None:
    """A function that raises ``InvalidParameter`` for arguments that can't be right; None when the schema says nothing."""
    try:
        return _check_of(tool, json.loads(schema_text))
    except (ValueError, TypeError, AttributeError):
        return None  # It is no schema; workers in other languages write theirs by hand.


def _check_of(tool: str, schema: Any) -> Callable[[Mapping[str, Any]], None] | None:
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return None
    definitions = schema.get("$defs", {})
    checks = {name: _compile(part, definitions, 0) for name, part in schema["properties"].items()}
    required = frozenset(schema.get("required", ()))
    closed = schema.get("additionalProperties") is False

    def check(params: Mapping[str, Any]) -> None:
        for name, value in params.items():
            known = checks.get(name, _unknown)
            if known is _unknown:
                if closed:
                    raise _invalid(tool, f"params[{_key(name)}]", "is not a parameter of the tool")
            elif known is not None:
                wrong = known(value)
                if wrong is not None:
                    raise _invalid(tool, f"params[{_key(name)}]{wrong[0]}", wrong[1])
        if not required <= params.keys():
            name = min(required - params.keys())
            raise _invalid(tool, f"params[{_key(name)}]", "is missing")

    return check


def _unknown(value: Any) -> None:
    """Stands for the check of a name that the schema does not have."""


def _key(name: object) -> str:
    return json.dumps(name) if isinstance(name, str) else ascii(name)


def _invalid(tool: str, path: str, reason: str) -> InvalidParameter:
    return InvalidParameter(f"{tool}: {path}: {reason}", details={"path": path, "tool": tool, "reason": reason})


def _compile(schema: Any, definitions: Mapping[str, Any], depth: int) -> _Check | None:
    """The check of one part of a schema; None when it has nothing to say."""
    if not isinstance(schema, dict) or depth > 8:
        return None
    reference = schema.get("$ref", "")
    if reference.startswith("#/$defs/"):
        return _compile(definitions.get(reference.removeprefix("#/$defs/")), definitions, depth + 1)
    if "anyOf" in schema:
        return _any_of(schema["anyOf"], definitions)
    if isinstance(schema.get("enum"), list):
        return _one_of(schema["enum"])
    kind = str(schema.get("type"))
    if kind not in _FITS or (kind == "string" and schema.keys() & {"format", "contentEncoding"}):
        return None
    fits = _FITS[kind]
    expected = _WORDS.get(kind, kind)
    inner = _inner(schema, definitions, depth)

    def check(value: Any) -> tuple[str, str] | None:
        name = _NAMES.get(type(value))
        if name is None:
            return None
        if name not in fits:
            return "", f"expected {expected}, got {name}"
        return inner(value) if inner is not None else None

    return check


def _one_of(allowed: list[Any]) -> _Check:
    """For Literals, and for members of an Enum by their values."""
    known = {(type(value), value) for value in allowed if type(value) in (str, int)}
    kinds = {type(value) for value in allowed}
    expected = ", ".join(_shown(value) for value in allowed[:_CHOICES]) + (", ..." if len(allowed) > _CHOICES else "")

    def check(value: Any) -> tuple[str, str] | None:
        # Of a kind that is not among them a worker may still make one of them, as 1.0 is 1.
        if type(value) not in kinds or type(value) not in (str, int) or (type(value), value) in known:
            return None
        return "", f"expected one of {expected}, got {_shown(value)}"

    return check


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _any_of(parts: list[Any], definitions: Mapping[str, Any]) -> _Check | None:
    """Judges by the kind of a value alone: which branch is meant can't be told from inside one."""
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts]
    if not all(kind in _FITS for kind in kinds):
        return None
    if any(part.keys() & {"format", "contentEncoding"} for part in parts):
        return None
    fits = frozenset().union(*(_FITS[kind] for kind in kinds if kind is not None))
    expected = " | ".join(_WORDS.get(str(kind), str(kind)) for kind in kinds)

    def check(value: Any) -> tuple[str, str] | None:
        name = _NAMES.get(type(value))
        return None if name is None or name in fits else ("", f"expected {expected}, got {name}")

    return check


def _inner(schema: dict[str, Any], definitions: Mapping[str, Any], depth: int) -> _Check | None:
    """The check of what is inside an array or an object."""
    if schema["type"] == "array":
        item = _compile(schema.get("items"), definitions, depth + 1)
        if item is None:
            return None
        check_item = item

        def items(value: Any) -> tuple[str, str] | None:
            for index, one in enumerate(value[:_ITEMS]):
                wrong = check_item(one)
                if wrong is not None:
                    return f"[{index}]{wrong[0]}", wrong[1]
            return None

        return items
    if schema["type"] == "object" and "properties" in schema:
        parts = {name: _compile(part, definitions, depth + 1) for name, part in schema["properties"].items()}
        required = frozenset(schema.get("required", ()))

        def properties(value: Any) -> tuple[str, str] | None:
            for name, one in value.items():
                check = parts.get(name)
                wrong = None if check is None else check(one)
                if wrong is not None:
                    return f"[{_key(name)}]{wrong[0]}", wrong[1]
            if not required <= value.keys():
                return f"[{_key(min(required - value.keys()))}]", "is missing"
            return None

        return properties
    return None
