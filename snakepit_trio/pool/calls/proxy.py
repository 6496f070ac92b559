"""A pool's tools as methods, with the signatures that a class declares."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from snakepit_trio._exceptions import attempt
from snakepit_trio._interrupts import managed
from snakepit_trio.errors import InvalidParameter, InvalidPayload
from snakepit_trio.worker.adapter import Adapter, ToolOptions, options_of, underlying

from .submission import tool_not_found

if TYPE_CHECKING:
    from .interface import Calling

__all__ = ["BoundTools", "bind", "converter_of"]

_CONTEXT = "ToolContext"
_STREAMS = (Iterator, Iterable, Generator, AsyncIterator, AsyncIterable, AsyncGenerator)


class BoundTools:
    """The result of :meth:`snakepit_trio.Pool.bind` for a module or an adapter's class: an object with a method for each
    tool.

    A method returns an awaitable of the result, or for a streaming tool an async context manager of an async iterator.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        known = [found for found in dir(type(self)) if not found.startswith("__")]
        close = difflib.get_close_matches(name, known, n=1)
        raise AttributeError(
            f"{self!r} has no tool {name!r}{f'; did you mean {close[0]!r}?' if close else ''}", name=name, obj=self
        )


class _Declared(NamedTuple):
    """A tool's declaration."""

    options: ToolOptions
    function: Callable[..., Any]
    #: Whether its first parameter is `self`.
    is_method: bool


def bind(pool: Calling, declaration: Any) -> Any:
    """See :meth:`snakepit_trio.Pool.bind`."""
    methods = dict(_declared(declaration))
    name = declaration.__name__.rpartition(".")[2]
    if not methods:
        raise InvalidParameter(
            f"{name} declares no tools: functions of a module or methods of an Adapter that are marked with @tool, or methods "
            "of a Protocol",
            details={"path": "declaration"},
        )
    known = {spec.name: spec for spec in pool.tools()}
    body: dict[str, Any] = {
        "__slots__": (),
        "__doc__": declaration.__doc__,
        "__repr__": lambda self: f"<{name} of {pool!r}>",
    }
    for attribute, declared in methods.items():
        tool = declared.options.name
        if tool not in known:
            raise tool_not_found(tool, known, pool.name)
        body[attribute] = _method(pool, declared, streaming=known[tool].streaming)
    return type(name, (BoundTools,), body)()


def _declared(declaration: Any) -> Iterator[tuple[str, _Declared]]:
    if not isinstance(declaration, ModuleType | type):
        kind = type(declaration)
        hint = f"; give the class itself: pool.bind({kind.__name__})" if isinstance(declaration, Adapter) else ""
        raise InvalidParameter(
            f"bind takes an adapter's module, its class, or a Protocol, not an object of type {kind.__name__}{hint}",
            details={"path": "declaration"},
        )
    is_class = isinstance(declaration, type)
    is_protocol = is_class and getattr(declaration, "_is_protocol", False)
    for attribute in dir(declaration) if is_class else sorted(vars(declaration)):
        raw = inspect.getattr_static(declaration, attribute, None)
        if attribute.startswith("__") or isinstance(raw, type):
            continue
        function: Any = raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw
        options = options_of(raw)
        if options is None and is_protocol and inspect.isfunction(function) and not attribute.startswith("_"):
            options = ToolOptions(attribute)
        if options is not None:
            yield (
                attribute,
                _Declared(options, function, is_class and not isinstance(raw, staticmethod | functools.partial)),
            )


def _method(pool: Calling, declared: _Declared, *, streaming: bool) -> Callable[..., Any]:
    function, tool = declared.function, declared.options.name
    hints = _hints(function)
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if declared.is_method else 0 :]
    signature = inspect.Signature([p for p in parameters if not _is_context(p, hints)])
    convert = _converter(tool, _chunk(hints.get("return", Any)) if streaming else hints.get("return", Any))

    def arguments(positional: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
        try:
            found = dict(signature.bind(*positional, **keywords).arguments)
        except TypeError as exc:
            raise InvalidParameter(f"{tool}: {exc}", details={"path": "params", "tool": tool}) from None
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                found.update(found.pop(parameter.name, {}))
        return found

    if streaming:

        @managed
        async def stream(self: Any, *positional: Any, **keywords: Any) -> AsyncIterator[AsyncIterator[Any]]:
            async with pool.stream(tool, arguments(positional, keywords)) as chunks:
                yield _Converted(chunks, convert)

        found: Callable[..., Any] = stream
    else:

        async def execute(self: Any, *positional: Any, **keywords: Any) -> Any:
            return convert(await pool.execute(tool, arguments(positional, keywords)))

        found = execute
    written = underlying(function)
    found.__name__, found.__qualname__ = getattr(written, "__name__", tool), getattr(written, "__qualname__", tool)
    found.__doc__ = written.__doc__
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    shown = [itself, *signature.parameters.values()]
    found.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    # `execute` and `map` then accept the method as a tool, and return its type.
    found.__snakepit_tool__ = declared.options  # type: ignore[attr-defined]
    found.__snakepit_convert__ = convert  # type: ignore[attr-defined]
    return found


def converter_of(tool: object) -> Callable[[Any], Any]:
    """Return the function that converts a bound method's result to its declared type; for anything else, a function that
    changes nothing.
    """
    found: Callable[[Any], Any] = attempt(_as_it_is, getattr, tool, "__snakepit_convert__")
    return found


def _as_it_is(value: Any) -> Any:
    return value


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(underlying(function))
    except Exception:
        # A name exists only for the type checker; results then are not converted.
        return {}


def _is_context(parameter: inspect.Parameter, hints: dict[str, Any]) -> bool:
    hint = hints.get(parameter.name, parameter.annotation)
    return getattr(hint, "__name__", str(hint).rpartition(".")[2]) == _CONTEXT


class _Converted:
    """A stream whose chunks are converted to their declared type."""

    def __init__(self, chunks: AsyncIterator[Any], convert: Callable[[Any], Any]) -> None:
        self._chunks = chunks
        self._convert = convert

    def __aiter__(self) -> _Converted:
        return self

    async def __anext__(self) -> Any:
        return self._convert(await anext(self._chunks))


def _chunk(hint: Any) -> Any:
    """Return the innermost type argument of ``Iterator[T]`` or ``AbstractAsyncContextManager[AsyncIterator[T]]``."""
    arguments = typing.get_args(hint)
    if arguments and (typing.get_origin(hint) in _STREAMS or _is_manager(hint)):
        return _chunk(arguments[0]) if _is_manager(hint) else arguments[0]
    return Any


def _is_manager(hint: Any) -> bool:
    return typing.get_origin(hint) is AbstractAsyncContextManager


def _converter(tool: str, hint: Any) -> Callable[[Any], Any]:
    """Return a function that makes instances of a declared record type, because records travel as maps of their fields."""
    if hint is Any or not _has_record(hint):
        return _as_it_is

    def convert(value: Any) -> Any:
        try:
            return msgspec.convert(value, hint)
        except msgspec.ValidationError as exc:
            raise InvalidPayload(
                f"{tool}: the result is not what was declared: {exc}", details={"path": "result", "tool": tool}
            ) from None

    return convert


def _has_record(hint: Any) -> bool:
    if isinstance(hint, type) and (
        issubclass(hint, msgspec.Struct) or hasattr(hint, "__dataclass_fields__") or hasattr(hint, "__attrs_attrs__")
    ):
        return True
    return any(_has_record(part) for part in typing.get_args(hint))
