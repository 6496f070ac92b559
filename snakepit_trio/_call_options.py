"""What a caller may say of a call, to a pool here or to one elsewhere, and what takes calls."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
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
    "check_limit",
    "check_metadata",
    "check_params",
    "check_tool",
    "declares",
    "tool_name",
]

F = TypeVar("F", bound=Callable[..., Any])

#: Metadata of one request: how many entries, and how many characters in all.
METADATA_ENTRIES = 64
METADATA_SIZE = 8192
#: As far as the wire carries it.
_MOST_PRIORITY = (1 << 31) - 1


class Unset:
    """The type of :data:`UNSET`."""

    def __repr__(self) -> str:
        return "the pool's own"


#: Stands for a limit that the caller did not give; the pool's configuration then decides.
UNSET: Final = Unset()


class StreamKeywords(TypedDict, total=False):
    """The options of :meth:`snakepit_trio.Pool.stream`.

    timeout: Seconds for the whole stream, waiting for a worker included; None for no limit. By default the pool's
        ``stream_timeout``. The caller's own scope counts too.
    priority: Greater goes first; 0 by default.
    metadata: Text that the tool finds in ``ctx.metadata``.
    """

    timeout: float | Unset | None
    priority: int
    metadata: Mapping[str, str] | None


class CallKeywords(StreamKeywords, total=False):
    """The options of :meth:`snakepit_trio.Pool.execute`: those of a stream, and one more. ``timeout`` is the pool's by default.

    idempotent: The call may run again when a worker dies under it; None means what the tool says of itself.
    """

    idempotent: bool | None


class _UnknownOption(InvalidParameter, TypeError):
    """A keyword that is no option of a call: for Python a TypeError, as any unexpected keyword argument."""


class CallOptions:
    """The options of one call, checked: made once, where the call enters, and carried whole to its end. Not changed after that.

    Attributes:
        timeout: Seconds; None for no limit, :data:`UNSET` for the pool's own.
        asked: The same, as the caller gave it: of ``timeout`` a part may be spent.
        priority: Greater goes first.
        metadata: As it was when the call was made, whatever its owner makes of it later.
        idempotent: The call may run more than once; None means what the tool says of itself.
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
            # Not shown: it may have more digits than Python turns into text.
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
        """The options that a caller has given as keywords.

        Args:
            allowed: The class that declares the keywords.

        Raises:
            InvalidParameter: An option is refused, or there is no such option, which is a TypeError too.
        """
        if not keywords:
            return NO_OPTIONS
        known = allowed.__annotations__
        for name in keywords:
            if name not in known:
                import difflib

                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
                raise _UnknownOption(f"a call has no option {name!r}{hint}", details={"path": name})
        return cls(**keywords)

    def limit(self, default: float | None) -> float | None:
        """Seconds for the call; None for no limit.

        Args:
            default: What the pool's configuration says.
        """
        return default if isinstance(self.timeout, Unset) else self.timeout

    def decided(self, option: str, default: float | None) -> TimeLimit:
        """The limit that the caller gave, or that the pool's configuration says.

        Args:
            option: The name of the pool's option.
            default: Its value.
        """
        asked = self.asked
        return TimeLimit(default, option, of_pool=True) if isinstance(asked, Unset) else TimeLimit(asked)

    def within(self, timeout: float | None) -> CallOptions:
        """The same options with another timeout, in seconds."""
        made = CallOptions.__new__(CallOptions)
        made.timeout, made.asked = timeout, self.asked
        made.priority, made.metadata, made.idempotent = self.priority, self.metadata, self.idempotent
        return made


_NO_METADATA: Final[Mapping[str, str]] = {}


class ToolCaller(Protocol):
    """What tools can be called through: a :class:`Pool`, a :class:`Session`, a client of :func:`connect` and its sessions.

    For functions that call tools and do not care where these run.
    """

    async def execute(self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]) -> Any:
        """Run a tool and return its result; see :meth:`Pool.execute`."""

    def stream(
        self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[StreamKeywords]
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Run a streaming tool; the block gets an async iterator of what it yields. See :meth:`Pool.stream`."""


def declares(keywords: type) -> Callable[[F], F]:
    """A decorator for a function that ends in ``**options: Unpack[keywords]``: its signature shows each option and its default.

    Type checkers expand the options themselves; this is for ``help()``, notebooks and :func:`inspect.signature`.
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
    """A call's arguments by name.

    Raises:
        InvalidParameter: They are no mapping.
    """
    if params is None:
        return {}
    if type(params) is dict:
        return params
    if not isinstance(params, Mapping):
        raise InvalidParameter(
            f"params must be a mapping of argument names to values, not {type(params).__name__}",
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


def check_tool(tool: str) -> None:
    """Refuse what can't be the name of a tool.

    Raises:
        InvalidParameter: It is no text, or none that can be sent.
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
    """Refuse what the limit of a map can't be.

    Raises:
        InvalidParameter: It is neither a positive int nor None.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidParameter(f"limit must be a positive int or None, not {limit!r}", details={"path": "limit"})


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a request, as it is now.

    Raises:
        InvalidParameter: It can't be that; names the entry.
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


#: Those of a call whose caller gave none.
NO_OPTIONS: Final = CallOptions()
