"""Check arguments against a tool's JSON Schema, before they are sent.

The worker checks every argument against the tool's own type hints. The host knows only the schema from the handshake,
which cannot describe bytes, dates or arrays of numbers as Python has them. So the host refuses only certain errors: a
missing or unknown argument, a list in place of a number. The worker may refuse arguments that pass here.

Each part of a schema is compiled once, however often it is referenced, and only a part of a very large schema is
compiled: a schema of two kilobytes may refer to itself so often that its expansion would fill the memory.

JSON Schema: https://json-schema.org/draft/2020-12/json-schema-core
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from snakepit_trio.errors import InvalidParameter

__all__ = ["compile_check"]

#: Returns the fault of a value, as a path below the value and a description; None for a valid value.
_Check = Callable[[Any], tuple[str, str] | None]

#: The name of each JSON type by its Python type; values of other types are not checked.
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
#: The names that satisfy each schema type.
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
#: The number of allowed values in an error message, and of characters of each.
_CHOICES = 20
_SHOWN = 60
#: Only this number of items of a list is checked here.
_ITEMS = 100
#: A longer schema is left to the worker. Of others this number of parts is compiled, including choices and branches, and
#: this number of levels.
_LONGEST, _PARTS, _LEVELS = 256 * 1024, 5000, 8


def compile_check(tool: str, schema_text: str) -> Callable[[Mapping[str, Any]], None] | None:
    """Return a function that raises ``InvalidParameter`` for certainly invalid arguments, or None if the schema constrains
    nothing.
    """
    if len(schema_text) > _LONGEST:
        return None
    try:
        return _check_of(tool, msgspec.json.decode(schema_text))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None  # Not a schema; workers in other languages may send hand-written ones.


def _check_of(tool: str, schema: Any) -> Callable[[Mapping[str, Any]], None] | None:
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return None
    compiler = _Compiler(schema.get("$defs", {}))
    checks = {name: compiler.compile(part, 0) for name, part in schema["properties"].items()}
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
    """The check of a name that the schema does not have."""


def _key(name: object) -> str:
    return json.dumps(name) if isinstance(name, str) else ascii(name)


def _invalid(tool: str, path: str, reason: str) -> InvalidParameter:
    return InvalidParameter(f"{tool}: {path}: {reason}", details={"path": path, "tool": tool, "reason": reason})


class _Compiler:
    """Compiles the checks of one schema.

    Args:
        definitions: The definitions to which its parts may refer.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._made: dict[tuple[str, int], _Check | None] = {}
        self._left = _PARTS

    def compile(self, schema: Any, depth: int) -> _Check | None:
        """Return the check of one part, or None if the part constrains nothing."""
        self._left -= 1
        if not isinstance(schema, dict) or depth > _LEVELS or self._left < 0:
            return None
        reference = schema.get("$ref", "")
        if reference.startswith("#/$defs/"):
            return self._definition(reference.removeprefix("#/$defs/"), depth + 1)
        if "anyOf" in schema:
            return _any_of(schema["anyOf"]) if self._affords(schema["anyOf"]) else None
        if isinstance(schema.get("enum"), list):
            return _one_of(schema["enum"]) if self._affords(schema["enum"]) else None
        kind = str(schema.get("type"))
        if kind not in _FITS or (kind == "string" and schema.keys() & {"format", "contentEncoding"}):
            return None
        fits = _FITS[kind]
        expected = _WORDS.get(kind, kind)
        inner = self._inner(schema, depth)

        def check(value: Any) -> tuple[str, str] | None:
            name = _NAMES.get(type(value))
            if name is None:
                return None
            if name not in fits:
                return "", f"expected {expected}, got {name}"
            return inner(value) if inner is not None else None

        return check

    def _definition(self, name: str, depth: int) -> _Check | None:
        if (name, depth) not in self._made:
            self._made[name, depth] = self.compile(self._definitions.get(name), depth)
        return self._made[name, depth]

    def _affords(self, parts: Sequence[Any]) -> bool:
        self._left -= len(parts)
        return self._left >= 0

    def _inner(self, schema: dict[str, Any], depth: int) -> _Check | None:
        """Return the check of the items of an array or the properties of an object."""
        if schema["type"] == "array":
            item = self.compile(schema.get("items"), depth + 1)
            return None if item is None else functools.partial(_check_items, item)
        if schema["type"] == "object" and "properties" in schema:
            parts = {name: self.compile(part, depth + 1) for name, part in schema["properties"].items()}
            return functools.partial(_check_properties, parts, frozenset(schema.get("required", ())))
        return None


def _check_items(check: _Check, value: Any) -> tuple[str, str] | None:
    for index, one in enumerate(value[:_ITEMS]):
        wrong = check(one)
        if wrong is not None:
            return f"[{index}]{wrong[0]}", wrong[1]
    return None


def _check_properties(
    parts: Mapping[str, _Check | None], required: frozenset[str], value: Any
) -> tuple[str, str] | None:
    for name, one in value.items():
        check = parts.get(name)
        wrong = None if check is None else check(one)
        if wrong is not None:
            return f"[{_key(name)}]{wrong[0]}", wrong[1]
    if not required <= value.keys():
        return f"[{_key(min(required - value.keys()))}]", "is missing"
    return None


def _one_of(allowed: list[Any]) -> _Check:
    """Return a check for Literals, and for members of an Enum by their values."""
    known = {(type(value), value) for value in allowed if type(value) in (str, int)}
    kinds = {type(value) for value in allowed}
    expected = ", ".join(_shown(value) for value in allowed[:_CHOICES]) + (", ..." if len(allowed) > _CHOICES else "")

    def check(value: Any) -> tuple[str, str] | None:
        # A worker may convert a value of another type to an allowed value, as 1.0 to 1.
        if type(value) not in kinds or type(value) not in (str, int) or (type(value), value) in known:
            return None
        return "", f"expected one of {expected}, got {_shown(value)}"

    return check


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _any_of(parts: list[Any]) -> _Check | None:
    """Check only a value's type, because the type alone does not show which branch is meant."""
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
