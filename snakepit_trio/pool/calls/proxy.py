"""A pool's tools as methods, with the signatures that a class declares."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from snakepit_trio._interrupts import managed
from snakepit_trio.errors import InvalidParameter, InvalidPayload

if TYPE_CHECKING:
    from ..pool import Pool

__all__ = ["bind"]

_CONTEXT = "ToolContext"
_STREAMS = (Iterator, Iterable, Generator, AsyncIterator, AsyncIterable, AsyncGenerator)


def bind(pool: Pool, declaration: type) -> Any:
    """See :meth:`snakepit_trio.Pool.bind`."""
    methods = dict(_declared(declaration))
    if not methods:
        raise InvalidParameter(
            f"{declaration.__qualname__} declares no tools: methods of a Protocol, or @tool methods of an Adapter",
            details={"path": "declaration"},
        )
    known = {spec.name: spec for spec in pool.tools()}
    body: dict[str, Any] = {
        "__slots__": (),
        "__doc__": declaration.__doc__,
        "__repr__": lambda self: f"<{declaration.__qualname__} of {pool!r}>",
    }
    for attribute, (tool, function) in methods.items():
        if tool not in known:
            raise pool._submission.tool_not_found(tool)
        body[attribute] = _method(pool, tool, function, streaming=known[tool].streaming)
    return type(declaration.__name__, (), body)()


def _declared(declaration: type) -> Iterator[tuple[str, tuple[str, Callable[..., Any]]]]:
    for attribute in dir(declaration):
        if attribute.startswith("_"):
            continue
        function = inspect.getattr_static(declaration, attribute)
        function = getattr(function, "__func__", function)
        options = getattr(function, "__snakepit_tool__", None)
        if options is not None:
            yield attribute, (options.name, function)
        elif getattr(declaration, "_is_protocol", False) and inspect.isfunction(function):
            yield attribute, (attribute, function)


def _method(pool: Pool, tool: str, function: Callable[..., Any], *, streaming: bool) -> Callable[..., Any]:
    hints = _hints(function)
    parameters = [p for p in inspect.signature(function).parameters.values() if not _is_context(p, hints)]
    signature = inspect.Signature(parameters)
    convert = _converter(tool, _chunk(hints.get("return", Any)) if streaming else hints.get("return", Any))

    def arguments(self: Any, positional: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
        try:
            bound = signature.bind(self, *positional, **keywords)
        except TypeError as exc:
            raise InvalidParameter(f"{tool}: {exc}", details={"path": "params", "tool": tool}) from None
        found = dict(list(bound.arguments.items())[1:])
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                found.update(found.pop(parameter.name, {}))
        return found

    if streaming:

        @managed
        async def stream(self: Any, *positional: Any, **keywords: Any) -> AsyncIterator[AsyncIterator[Any]]:
            async with pool.stream(tool, arguments(self, positional, keywords)) as chunks:
                yield _Converted(chunks, convert)

        found: Callable[..., Any] = stream
    else:

        async def execute(self: Any, *positional: Any, **keywords: Any) -> Any:
            return convert(await pool.execute(tool, arguments(self, positional, keywords)))

        found = execute
    found.__name__, found.__qualname__, found.__doc__ = function.__name__, function.__qualname__, function.__doc__
    found.__signature__ = signature  # type: ignore[attr-defined]
    return found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:
        # A name that exists for the type checker only: results then come as they are.
        return {}


def _is_context(parameter: inspect.Parameter, hints: dict[str, Any]) -> bool:
    hint = hints.get(parameter.name, parameter.annotation)
    return getattr(hint, "__name__", str(hint).rpartition(".")[2]) == _CONTEXT


class _Converted:
    """A stream's chunks, each as what it is declared to be."""

    def __init__(self, chunks: AsyncIterator[Any], convert: Callable[[Any], Any]) -> None:
        self._chunks = chunks
        self._convert = convert

    def __aiter__(self) -> _Converted:
        return self

    async def __anext__(self) -> Any:
        return self._convert(await anext(self._chunks))


def _chunk(hint: Any) -> Any:
    """The innermost argument: of ``Iterator[T]``, or of ``AbstractAsyncContextManager[AsyncIterator[T]]``."""
    arguments = typing.get_args(hint)
    if arguments and (typing.get_origin(hint) in _STREAMS or _is_manager(hint)):
        return _chunk(arguments[0]) if _is_manager(hint) else arguments[0]
    return Any


def _is_manager(hint: Any) -> bool:
    return typing.get_origin(hint) is AbstractAsyncContextManager


def _converter(tool: str, hint: Any) -> Callable[[Any], Any]:
    """Records travel as maps of their fields: what makes an instance again of a result that is declared as one."""
    if hint is Any or not _has_record(hint):
        return lambda value: value

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
