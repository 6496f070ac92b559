"""The registry of host tools, which the workers' tools may call. Functions are checked when they are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, overload

import attrs

from snakepit_trio._bulkhead import InternalErrors, operation
from snakepit_trio._call_options import check_metadata
from snakepit_trio.errors import ConfigError, InvalidParameter, ToolExists, ToolNotFound
from snakepit_trio.worker.adapter import TOOL_NAME, ToolOptions, options_of
from snakepit_trio.worker.toolbox import Tool

__all__ = ["RESERVED", "HostTool", "ToolRegistry"]

#: Names with this prefix are reserved for the library.
RESERVED = "snakepit."
_MOST_TOOLS = 10_000
_LONGEST_DESCRIPTION = 8192

F = TypeVar("F", bound=Callable[..., Any])


@attrs.frozen(kw_only=True)
class HostTool:
    """A registered host tool.

    Attributes:
        name: The name by which workers call it.
        description: The description.
        metadata: Strings about the tool.
        critical: Whether it can't be replaced or removed.
        tool: Its function, signature and schemas.
    """

    name: str
    description: str
    metadata: Mapping[str, str]
    critical: bool
    tool: Tool = attrs.field(repr=False)

    @property
    def parameters_schema(self) -> str:
        """The JSON Schema of the parameters, as JSON text."""
        return self.tool.parameters_schema


class ToolRegistry:
    """Host tools by name. A session has its own registry, which takes precedence over the runtime's.

    Args:
        errors: Reports unexpected exceptions.
    """

    def __init__(self, errors: InternalErrors | None = None) -> None:
        self._errors = errors or InternalErrors()
        self._tools: dict[str, HostTool] = {}

    def __repr__(self) -> str:
        return f"<ToolRegistry {len(self._tools)} tools>"

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[HostTool]:
        return iter(self.list())

    @overload
    def host_tool(self, function: F, /) -> F: ...
    @overload
    def host_tool(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
        critical: bool = False,
        replace: bool = False,
    ) -> Callable[[F], F]: ...
    def host_tool(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
        critical: bool = False,
        replace: bool = False,
    ) -> Any:
        """Register a function under its own name, as a decorator; arguments and errors as for :meth:`register`."""

        def mark(fn: Any) -> Any:
            self.register(
                getattr(fn, "__name__", "") if name is None else name,
                fn,
                description=description,
                metadata=metadata,
                critical=critical,
                replace=replace,
            )
            return fn

        return mark if function is None else mark(function)

    @operation
    def register(
        self,
        name: str,
        fn: Callable[..., Any],
        *,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
        critical: bool = False,
        replace: bool = False,
    ) -> HostTool:
        """Let workers call a function, sync or async, by this name.

        An async function runs in the runtime's event loop, under the deadline of the request that calls it, and is
        cancelled with that request; a sync function runs in a thread.

        Args:
            name: A letter, then up to 63 letters, digits, ``_``, ``.`` or ``-``; not beginning with ``snakepit.``.
            fn: The function. Arguments are passed by name, and annotated ones are checked.
            description: The description; by default the first paragraph of the docstring.
            metadata: Strings about the tool: up to 64 entries, 8192 characters.
            critical: The tool can't be replaced or removed.
            replace: Replace an existing tool of this name.

        Returns:
            The registered tool.

        Raises:
            InvalidParameter: An argument is invalid; nothing was registered.
            ToolExists: There is a tool of this name.
        """
        return self._place(_make(name, fn, description, metadata, critical=critical), replace=replace)

    def register_alike(
        self, name: str, fn: Callable[..., Any], like: Tool, *, description: str, metadata: Mapping[str, str]
    ) -> HostTool:
        """Register a function that has the signature of an existing tool's function."""
        return self._place(_make(name, fn, description, metadata, critical=False, like=like), replace=False)

    def _place(self, made: HostTool, *, replace: bool) -> HostTool:
        self._check_place(made.name, replace=replace)
        self._check_room(made.name not in self._tools)
        self._tools[made.name] = made
        return made

    @operation
    def register_many(self, functions: Mapping[str, Callable[..., Any]], *, replace: bool = False) -> None:
        """Register functions by name: all of them or, if one is refused, none.

        Raises:
            InvalidParameter, ToolExists: As for :meth:`register`, about the first function that is refused.
        """
        if not isinstance(functions, Mapping):
            raise InvalidParameter(
                f"functions must be a mapping of names to functions, not {type(functions).__name__}",
                details={"path": "functions"},
            )
        made = {name: _make(name, function, None, None, critical=False) for name, function in functions.items()}
        for name in made:
            self._check_place(name, replace=replace)
        self._check_room(len(made.keys() - self._tools.keys()))
        self._tools.update(made)

    @operation
    def unregister(self, name: str) -> None:
        """Remove a tool; its running calls continue.

        Raises:
            ToolNotFound: There is no tool of this name.
            ToolExists: The tool is critical and stays registered.
        """
        found = self._tools.get(name)
        if found is None:
            raise _not_found(name)
        if found.critical:
            raise ToolExists(f"host tool {name!r} is critical and can't be removed", details={"tool": name})
        del self._tools[name]

    def get(self, name: str) -> HostTool:
        """Return the tool of this name.

        Raises:
            ToolNotFound: There is no tool of this name.
        """
        found = self._tools.get(name)
        if found is None:
            raise _not_found(name)
        return found

    def list(self) -> tuple[HostTool, ...]:
        """Return all tools, sorted by name."""
        return tuple(self._tools[name] for name in sorted(self._tools))

    def _check_place(self, name: str, *, replace: bool) -> None:
        found = self._tools.get(name)
        if found is not None and (found.critical or not replace):
            why = (
                "is critical and can't be replaced" if found.critical else "is there already; replace=True replaces it"
            )
            raise ToolExists(f"host tool {name!r} {why}", details={"tool": name, "critical": found.critical})

    def _check_room(self, more: int) -> None:
        if len(self._tools) + more > _MOST_TOOLS:
            raise InvalidParameter(f"there may be at most {_MOST_TOOLS} host tools", details={"path": "name"})


def _not_found(name: object) -> ToolNotFound:
    return ToolNotFound(f"the host has no tool {name!r}", details={"tool": name})


def _make(
    name: object,
    function: Any,
    description: str | None,
    metadata: Mapping[str, str] | None,
    *,
    critical: bool,
    like: Tool | None = None,
) -> HostTool:
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise InvalidParameter(
            f"a host tool can't be called {ascii(name)[:100]}: a letter, then up to 63 letters, digits, '_', '.' or '-'",
            details={"path": "name"},
        )
    if name.lower().startswith(RESERVED):
        raise InvalidParameter(f"{name!r}: names that begin with {RESERVED!r} are reserved", details={"path": "name"})
    if not callable(function):
        raise InvalidParameter(
            f"host tool {name!r} must be a function, not {type(function).__name__}", details={"path": "function"}
        )
    given = options_of(function)
    if description is None:
        description = (
            given.description if given else " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
        )
    if not isinstance(description, str) or len(description) > _LONGEST_DESCRIPTION:
        raise InvalidParameter(
            f"host tool {name!r}: the description must be text of up to {_LONGEST_DESCRIPTION} characters",
            details={"path": "description"},
        )
    if metadata is not None:
        check_metadata(metadata)
    if type(critical) is not bool:
        raise InvalidParameter(
            f"host tool {name!r}: critical must be a bool, not {critical!r}", details={"path": "critical"}
        )
    options = ToolOptions(name, description, critical)
    try:
        tool = Tool(function, options) if like is None else like.alike(function, options)
    except (ConfigError, ValueError, TypeError) as exc:
        raise InvalidParameter(f"host tool {name!r}: {exc}", details={"path": "function"}) from exc
    if tool.takes_context:
        raise InvalidParameter(
            f"host tool {name!r} asks for a ToolContext, which belongs to workers", details={"path": "function"}
        )
    if tool.kind.streaming:
        raise InvalidParameter(
            f"host tool {name!r} gives a stream; a host tool gives one result", details={"path": "function"}
        )
    given_metadata = MappingProxyType(dict(metadata or {}))
    return HostTool(name=name, description=description, metadata=given_metadata, critical=critical, tool=tool)
