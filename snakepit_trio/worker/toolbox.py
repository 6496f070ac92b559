"""An adapter's tools: found by their marks, described by JSON Schema, and bound to the arguments of a call."""

from __future__ import annotations

import collections.abc
import copy
import datetime as dt
import decimal
import inspect
import json
import math
import types
import typing
import uuid
from collections.abc import Callable
from enum import Enum, Flag
from typing import Any

import msgspec

from snakepit_trio.errors import ConfigError, InvalidParameter

from .adapter import ToolOptions, adapters_in, options_of, underlying
from .context import ToolContext
from .hints import enum_by_hand, impossible, is_judged, name_of, remedy, restore, schema_of, takes_none

__all__ = ["Kind", "Tool", "find_tools", "toolbox_is_async"]

_BUILTIN_TYPES = (
    bytes, bytearray, memoryview, dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID,
)  # fmt: skip
#: The types whose values :func:`msgspec.convert` returns unchanged.
_EXACT = frozenset({bool, int, str, bytes, float})
_MISSING = object()
_STREAMS = (
    collections.abc.Iterator,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
)


class Kind(Enum):
    """The kind of a tool's function."""

    SYNC = "sync"
    ASYNC = "async"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"

    @property
    def streaming(self) -> bool:
        """Whether the function yields chunks."""
        return self in (Kind.GENERATOR, Kind.ASYNC_GENERATOR)

    @property
    def phrase(self) -> str:
        """A description of the kind."""
        return f"{'an' if self.value.startswith('a') else 'a'} {self.value} function".replace(
            "generator function", "generator"
        )

    @property
    def needs_loop(self) -> bool:
        """Whether the function runs on an event loop."""
        return self in (Kind.ASYNC, Kind.ASYNC_GENERATOR)


class Tool:
    """One tool.

    Attributes:
        options: The arguments of ``@tool``.
        kind: The kind of its function.
        parameters_schema, result_schema: JSON Schema 2020-12, as JSON text.
        took: The duration of its last run, in seconds; infinite before the first, and if it is not measured.
    """

    def __init__(self, function: Callable[..., Any], options: ToolOptions) -> None:
        self.function = function
        self.options = options
        self.name: str = options.name
        signature = inspect.signature(function)
        hints = _hints(function)
        self.took: float = math.inf
        self._context: str | None = None
        self._positional: list[str] = []
        self._keyword: list[str] = []
        self._extra = False
        self._enums: dict[str, type[Enum]] = {}
        fields: list[Any] = []
        for parameter in signature.parameters.values():
            hint = hints.get(parameter.name, Any)
            if _is_context(hint):
                self._context = parameter.name
                if parameter.kind is parameter.KEYWORD_ONLY:
                    self._keyword.append(parameter.name)
                else:
                    self._positional.append(parameter.name)
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                raise ConfigError(
                    f"tool {self.name!r}: *{parameter.name} can't be called by name", details={"key": self.name}
                )
            if parameter.kind is parameter.VAR_KEYWORD:
                self._extra = True
                continue
            (self._keyword if parameter.kind is parameter.KEYWORD_ONLY else self._positional).append(parameter.name)
            members = enum_by_hand(hint)
            if members is not None:
                self._enums[parameter.name] = members
                none = takes_none(hint)
                hint = int if issubclass(members, Flag) else Any
                hint = hint | None if none else hint
            if parameter.default is parameter.empty:
                if impossible(hint):
                    raise ConfigError(
                        f"tool {self.name!r}: no value of type {name_of(hint)} can be sent, so its parameter "
                        f"{parameter.name!r} can't be given; {remedy(hint)}",
                        details={
                            "key": self.name,
                            "parameter": parameter.name,
                            "expected": "a type of value that can be sent",
                        },
                    )
                fields.append((parameter.name, hint))
            else:
                default = parameter.default
                fields.append((parameter.name, hint, _default(default)))
        self._names = [field[0] for field in fields]
        self._quick = None if self._keyword or self._enums else self._shortcut(fields)
        self._params = _struct(fields, forbid_unknown=not self._extra)
        self.kind: Kind = _kind(function, hints.get("return"))
        if options.inline and self.kind is not Kind.SYNC:
            raise ConfigError(
                f"tool {self.name!r} can't be inline: it is {self.kind.phrase}, and only a plain function is run where its "
                "call arrives",
                details={"key": self.name},
            )
        self.parameters_schema: str = _schema(self._params)
        self.result_schema: str = _result_schema(hints.get("return", Any), self.kind)

    def __repr__(self) -> str:
        return f"<Tool {self.name!r} {self.kind.value}>"

    def alike(self, function: Callable[..., Any], options: ToolOptions) -> Tool:
        """Return a tool for a function with the same signature, without inspecting it, which takes longer than most calls."""
        made = copy.copy(self)
        made.function, made.options, made.name = function, options, options.name
        return made

    @property
    def takes_context(self) -> bool:
        """Whether a parameter receives the call's context."""
        return self._context is not None

    def bind(self, params: Any, context: ToolContext | None) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and keyword arguments of a call.

        Raises:
            InvalidParameter: An argument is missing, unknown, or of the wrong type; the error names its path.
        """
        if self._quick is not None and type(params) is dict:
            arguments: list[Any] = []
            for name, kind in self._quick:
                value = context if kind is ToolContext else params.get(name, _MISSING)
                # A value of exactly the annotated type needs no conversion.
                if (kind is not None and kind is not type(value) and kind is not ToolContext) or value is _MISSING:
                    break
                arguments.append(value)
            else:
                if len(params) == len(self._names):
                    return arguments, {}
        try:
            bound = msgspec.convert(params, self._params, builtin_types=_BUILTIN_TYPES, dec_hook=restore)
        except msgspec.ValidationError as exc:
            raise _invalid(self.name, exc) from None
        values = dict(zip(self._names, msgspec.structs.astuple(bound), strict=True))
        for name, members in self._enums.items():
            # An Enum without None as a value may be in a union with None.
            if values[name] is not None or any(member.value is None for member in members):
                values[name] = self._member(name, members, values[name])
        if self._context is not None:
            values[self._context] = context
        keywords = {name: values[name] for name in self._keyword}
        if self._extra:
            keywords.update((key, value) for key, value in params.items() if key not in values)
        return [values[name] for name in self._positional], keywords

    def _member(self, name: str, members: type[Enum], value: Any) -> Enum:
        """Return the Enum member with this value; a default already is a member."""
        try:
            return members(value)
        except ValueError:
            path = f"params[{json.dumps(name)}]"
            reason = f"no member of {members.__qualname__} has this value"
            raise InvalidParameter(
                f"{self.name}: {path}: {reason}", details={"path": path, "tool": self.name, "reason": reason}
            ) from None

    def _shortcut(self, fields: list[Any]) -> list[tuple[str, type | None]] | None:
        """Return each positional parameter's name and exact type (None for any); None if a hint is more than a type."""
        kinds: dict[str, Any] = {name: None if hint is Any else hint for name, hint, *_ in fields}
        if any(kind is not None and kind not in _EXACT for kind in kinds.values()):
            return None
        return [(name, kinds.get(name, ToolContext)) for name in self._positional]


def find_tools(target: Any) -> list[Tool]:
    """Return the tools of an adapter: a module, or an instance of a class.

    Raises:
        ConfigError: Two tools have the same name, one can't be called by name, or there are none.
    """
    found: dict[str, Tool] = {}
    names = sorted(vars(target)) if inspect.ismodule(target) else sorted(set(dir(type(target))))
    for attribute in names:
        if attribute.startswith("__"):
            continue
        raw = inspect.getattr_static(target, attribute, None)
        options = options_of(raw)
        if options is None:
            continue
        if options.name in found and found[options.name].function != getattr(target, attribute):
            raise ConfigError(f"two tools are called {options.name!r}", details={"key": options.name})
        found[options.name] = Tool(getattr(target, attribute), options)
    if not found:
        kind = type(target)
        named = target.__name__ if inspect.ismodule(target) else f"{kind.__module__}:{kind.__qualname__}"
        classes = [f"{target.__name__}:{name}" for name in adapters_in(target)] if inspect.ismodule(target) else []
        hint = f"; it has adapters: {', '.join(classes)}" if classes else ""
        raise ConfigError(
            f"the adapter {named!r} has no tools: mark functions with @snakepit_trio.tool{hint}",
            details={"key": "adapter"},
        )
    return [found[name] for name in sorted(found)]


def toolbox_is_async(target: Any, tools: list[Tool]) -> bool:
    """Return whether any part of the adapter needs an event loop."""
    hooks = [getattr(target, name, None) for name in ("setup", "teardown", "health")]
    return any(tool.kind.needs_loop for tool in tools) or any(inspect.iscoroutinefunction(hook) for hook in hooks)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    function = underlying(function)
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        # A name exists only for the type checker: its parameter is not checked, all others are.
        inner: Any = inspect.unwrap(function)
        raw: dict[str, Any] = getattr(inner, "__annotations__", {})
        # Names that are often imported only for the type checker, and that determine how a tool is called.
        names = {**vars(collections.abc), "ToolContext": ToolContext, **getattr(inner, "__globals__", {})}
        return {name: _hint(name, hint, names) for name, hint in raw.items()}


def _hint(name: str, hint: Any, names: dict[str, Any]) -> Any:
    alone = types.SimpleNamespace(__annotations__={name: hint})
    try:
        return typing.get_type_hints(alone, globalns=names, include_extras=True)[name]
    except Exception:
        return ToolContext if isinstance(hint, str) and hint.split(".")[-1] == "ToolContext" else Any


def _is_context(hint: Any) -> bool:
    return hint is ToolContext or ToolContext in typing.get_args(hint)


def _kind(function: Callable[..., Any], returns: Any) -> Kind:
    function = underlying(function)
    if inspect.isasyncgenfunction(function):
        return Kind.ASYNC_GENERATOR
    if inspect.isgeneratorfunction(function):
        return Kind.GENERATOR
    if inspect.iscoroutinefunction(function):
        return Kind.ASYNC
    origin = typing.get_origin(returns) or returns
    if origin in _STREAMS[:2]:
        return Kind.GENERATOR
    if origin in _STREAMS[2:]:
        return Kind.ASYNC_GENERATOR
    return Kind.SYNC


def _default(value: Any) -> Any:
    return msgspec.field(default_factory=lambda: value)


def _struct(fields: list[Any], *, forbid_unknown: bool) -> type[msgspec.Struct]:
    checked = []
    for field in fields:
        hint = field[1]
        try:
            # msgspec inspects a hint on first use, which should be here rather than in a call.
            msgspec.json.Decoder(hint, dec_hook=restore)
            judged = is_judged(hint)
        except TypeError:
            judged = False
        hint = hint if judged else Any
        checked.append((field[0], hint, *field[2:]))
    return msgspec.defstruct("Parameters", checked, kw_only=True, forbid_unknown_fields=forbid_unknown)


def _invalid(tool: str, exc: msgspec.ValidationError) -> InvalidParameter:
    text = str(exc)
    # The value quoted in the text may contain anything.
    reason, found, where = text.rpartition(" - at `$")
    if not found:
        reason, where = text, ""
    path = "params"
    if found:
        rest = where.rstrip("`")
        for part in rest.replace("[", ".[").split("."):
            if part.startswith("["):
                path += part
            elif part:
                path += f"[{json.dumps(part)}]"
    elif reason.startswith(("Object missing required field `", "Object contains unknown field `")):
        path += f"[{json.dumps(reason.split('`')[1])}]"
    plain = reason.replace("`", "")
    words = {
        "Object missing required field": "is missing",
        "Object contains unknown field": "is not a parameter of the tool",
    }
    for begin, replacement in words.items():
        if plain.startswith(begin):
            plain = replacement
    if plain.startswith("Expected"):
        plain = f"expected{plain[8:]}"
    return InvalidParameter(f"{tool}: {path}: {plain}", details={"path": path, "tool": tool, "reason": plain})


def _schema(params: type[msgspec.Struct]) -> str:
    try:
        schema = msgspec.json.schema(params, schema_hook=schema_of)
    except TypeError:
        schema = {"type": "object"}
    return json.dumps(_inline(schema))


def _result_schema(hint: Any, kind: Kind) -> str:
    if kind.streaming:
        arguments = typing.get_args(hint)
        hint = arguments[0] if arguments else Any
    try:
        return json.dumps(_inline(msgspec.json.schema(hint, schema_hook=schema_of)))
    except Exception:
        return "{}"


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with its root in place of a reference to it."""
    reference = schema.get("$ref", "")
    definitions = dict(schema.get("$defs", {}))
    if reference.startswith("#/$defs/"):
        root = definitions.pop(reference.removeprefix("#/$defs/"))
        root.pop("title", None)
        return {**root, **({"$defs": definitions} if definitions else {})}
    return schema
