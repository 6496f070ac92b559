"""The options of a call, and the protocol of objects that accept calls: pools, sessions and clients."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypedDict, TypeVar, Unpack

from ._exceptions import attempt
from ._timeouts import TimeLimit, check_timeout
from .errors import InvalidParameter

__all__ = [
    "NO_OPTIONS",
    "UNSET",
    "CallKeywords",
    "CallOptions",
    "StreamKeywords",
    "ToolCaller",
    "Unset",
    "check_inputs",
    "check_limit",
    "check_metadata",
    "check_params",
    "check_tool",
    "declares",
    "tool_name",
]

F = TypeVar("F", bound=Callable[..., Any])

#: The largest number of metadata entries of a request; below, the largest number of characters in all.
METADATA_ENTRIES = 64
METADATA_SIZE = 8192
#: The range that the wire can represent.
_MOST_PRIORITY = (1 << 31) - 1


class Unset:
    """The type of :data:`UNSET`."""

    def __repr__(self) -> str:
        return "the pool's own"


#: An option that the caller did not give; the pool's configuration decides.
UNSET: Final = Unset()


class StreamKeywords(TypedDict, total=False):
    """The options of :meth:`snakepit_trio.Pool.stream`.

    timeout: Seconds for the whole stream, including the wait for a worker; None for no limit. The default is the pool's
        ``stream_timeout``. The caller's own scope applies too.
    priority: Requests of greater priority go first; the default is 0.
    metadata: Strings that the tool finds in ``ctx.metadata``.
    """

    timeout: float | Unset | None
    priority: int
    metadata: Mapping[str, str] | None


class CallKeywords(StreamKeywords, total=False):
    """The options of :meth:`snakepit_trio.Pool.execute`: those of a stream, with the pool's ``timeout`` as default, and one
    more.

    idempotent: The call may run again if its worker dies. None: the tool's own declaration decides.
    """

    idempotent: bool | None


class _UnknownOption(InvalidParameter, TypeError):
    """An unknown option of a call; also a TypeError, like any unexpected keyword argument."""


class CallOptions:
    """The checked options of one call. They are created once, where the call enters, and passed on unchanged to its end.

    Attributes:
        timeout: Seconds; None for no limit, :data:`UNSET` for the pool's own.
        asked: The timeout as the caller gave it; a part of ``timeout`` may already be spent.
        priority: Requests of greater priority go first.
        metadata: A copy, so later changes by the caller have no effect.
        idempotent: The call may run more than once. None: the tool's own declaration decides.
    """

    __slots__ = ("asked", "idempotent", "metadata", "priority", "timeout")

    def __init__(
        self,
        timeout: float | Unset | None = UNSET,
        priority: int = 0,
        metadata: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> None:
        self.timeout: float | Unset | None = timeout if isinstance(timeout, Unset) else check_timeout(timeout)
        self.asked: float | Unset | None = self.timeout
        if type(priority) is not int:
            raise InvalidParameter(f"priority must be an int, not {priority!r}", details={"path": "priority"})
        if not -_MOST_PRIORITY <= priority <= _MOST_PRIORITY:
            # The value is not shown, because it may have more digits than Python converts to text.
            raise InvalidParameter(
                f"priority must be from {-_MOST_PRIORITY} to {_MOST_PRIORITY}", details={"path": "priority"}
            )
        self.priority: int = priority
        self.metadata: Mapping[str, str] = check_metadata(metadata) if metadata else _NO_METADATA
        if idempotent is not None and type(idempotent) is not bool:
            raise InvalidParameter(
                f"idempotent must be a bool or None, not {idempotent!r}", details={"path": "idempotent"}
            )
        self.idempotent: bool | None = idempotent

    def __repr__(self) -> str:
        given = [f"{name}={getattr(self, name)!r}" for name in CallKeywords.__annotations__]
        return f"CallOptions({', '.join(given)})"

    @classmethod
    def of(cls, keywords: CallKeywords | StreamKeywords, allowed: type = CallKeywords) -> CallOptions:
        """Create options from a caller's keywords.

        Args:
            keywords: The keywords.
            allowed: The class that declares the allowed keywords.

        Raises:
            InvalidParameter: An option is invalid, or unknown (then it is also a TypeError).
        """
        if not keywords:
            return NO_OPTIONS
        known = allowed.__annotations__
        for name in keywords:
            if name not in known:
                import difflib

                close = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"; did you mean {close[0]!r}?"
                    if close
                    else f"; there are {', '.join(known)}, and a tool's arguments are one mapping: {{{name!r}: ...}}"
                )
                raise _UnknownOption(f"a call has no option {name!r}{hint}", details={"path": name})
        return cls(**keywords)

    def limit(self, default: float | None) -> float | None:
        """Return the call's time limit in seconds; None for no limit.

        Args:
            default: The limit of the pool's configuration.
        """
        return default if isinstance(self.timeout, Unset) else self.timeout

    def decided(self, option: str, default: float | None) -> TimeLimit:
        """Return the time limit with the option that determines it: the caller's, or else the pool's.

        Args:
            option: The name of the pool's option.
            default: The value of that option.
        """
        asked = self.asked
        return TimeLimit(default, option, of_pool=True) if isinstance(asked, Unset) else TimeLimit(asked)

    def within(self, timeout: float | None) -> CallOptions:
        """Return the same options with another timeout, in seconds."""
        made = CallOptions.__new__(CallOptions)
        made.timeout, made.asked = timeout, self.asked
        made.priority, made.metadata, made.idempotent = self.priority, self.metadata, self.idempotent
        return made


_NO_METADATA: Final[Mapping[str, str]] = {}


class ToolCaller(Protocol):
    """The protocol of a :class:`Pool`, a :class:`Session`, a client of :func:`connect` and a client's sessions.

    Use it to annotate functions that call tools and work with any of these.
    """

    async def execute(self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]) -> Any:
        """Run a tool and return its result; see :meth:`Pool.execute`, also for a cancellation."""

    def stream(
        self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[StreamKeywords]
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Run a streaming tool; the block receives an async iterator of its chunks. See :meth:`Pool.stream`."""


def declares(keywords: type) -> Callable[[F], F]:
    """Decorate a function that ends in ``**options: Unpack[keywords]``, so that its signature shows each option and its
    default.

    Type checkers expand the options themselves; the decorator serves ``help()``, notebooks and :func:`inspect.signature`.
    """

    def decorate(function: F) -> F:
        found = inspect.signature(function)
        shown = [p for p in found.parameters.values() if p.kind is not p.VAR_KEYWORD]
        defaults = inspect.signature(CallOptions).parameters
        for name, hint in keywords.__annotations__.items():
            shown.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=defaults[name].default,
                    annotation=hint.__forward_arg__,
                )
            )
        function.__signature__ = found.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return decorate


def check_params(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a call's arguments by name.

    Raises:
        InvalidParameter: The arguments are not a mapping.
    """
    if params is None:
        return {}
    if type(params) is dict:
        return params
    if not isinstance(params, Mapping):
        raise InvalidParameter(
            "params must be a mapping of argument names to values, such as {'a': 1}, not " + type(params).__name__,
            details={"path": "params"},
        )
    return dict(params)


def tool_name(tool: str | Callable[..., Any]) -> str:
    """The name of a tool, which may be given as a function: one that ``@tool`` has marked, or a method of ``Pool.bind``.

    Raises:
        InvalidParameter: It is neither that nor text.
    """
    if isinstance(tool, str):
        return tool
    name = getattr(attempt(None, getattr, tool, "__snakepit_tool__"), "name", None)
    if isinstance(name, str):
        return name
    what = type(tool).__name__
    hint = f"; a {what} is a tool when it is marked with @snakepit_trio.tool in the adapter" if callable(tool) else ""
    raise InvalidParameter(f"the tool must be named by text, not {what}{hint}", details={"path": "tool"})


def check_inputs(inputs: object) -> None:
    """Refuse what can't be the inputs of a map.

    Raises:
        InvalidParameter: They are not iterable, or are one input.
    """
    iterable = isinstance(inputs, Iterable | AsyncIterable) or hasattr(type(inputs), "__getitem__")
    if not iterable or isinstance(inputs, Mapping | str | bytes):
        what = "one mapping" if isinstance(inputs, Mapping) else type(inputs).__name__
        raise InvalidParameter(
            f"inputs must be an iterable of mappings, such as [{{'a': 1}}, {{'a': 2}}], not {what}",
            details={"path": "inputs"},
        )


def check_tool(tool: str) -> None:
    """Check the name of a tool.

    Raises:
        InvalidParameter: The name is not a string, or has no UTF-8 form.
    """
    if not isinstance(tool, str):
        raise InvalidParameter(f"the tool must be named by text, not {type(tool).__name__}", details={"path": "tool"})
    if not _sendable(tool):
        raise InvalidParameter(f"the tool's name {tool!r} has a lone surrogate", details={"path": "tool"})


def _sendable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_limit(limit: int | None) -> None:
    """Check the ``limit`` of a map.

    Raises:
        InvalidParameter: The limit is neither a positive int nor None.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidParameter(f"limit must be a positive int or None, not {limit!r}", details={"path": "limit"})


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of a request's metadata.

    Raises:
        InvalidParameter: The metadata is invalid; the error names the entry.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidParameter("metadata must be a mapping of text to text", details={"path": "metadata"})
    size = 0
    found = dict(metadata)
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            what = "a key" if not isinstance(key, str) else "a value"
            raise InvalidParameter(
                f"metadata[{key!r}]: {what} must be text, not {type(value if what == 'a value' else key).__name__}",
                details={"path": f"metadata[{key!r}]"},
            )
        if not (_sendable(key) and _sendable(value)):
            raise InvalidParameter(
                f"metadata[{key!r}] has a lone surrogate, which is no text", details={"path": f"metadata[{key!r}]"}
            )
        size += len(key) + len(value)
    if len(found) > METADATA_ENTRIES or size > METADATA_SIZE:
        raise InvalidParameter(
            f"metadata has {len(found)} entries of {size} characters; the limits are {METADATA_ENTRIES} and {METADATA_SIZE}",
            details={"path": "metadata"},
        )
    return found


#: The options of a call without any.
NO_OPTIONS: Final = CallOptions()
