"""The adapter SDK: how a module says which of its functions are tools."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar, overload

import msgspec

from snakepit_trio._exceptions import attempt
from snakepit_trio.errors import InvalidParameter

from .importing import being_set_up, import_adapter

__all__ = ["TOOL_NAME", "Adapter", "ToolOptions", "adapters_in", "load_adapter", "tool"]

#: What a tool may be called.
TOOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_MARK = "__snakepit_tool__"

F = TypeVar("F", bound=Callable[..., Any])


class ToolOptions(msgspec.Struct, frozen=True):
    """What ``@tool`` was given."""

    name: str
    description: str = ""
    critical: bool = False
    idempotent: bool = False
    inline: bool = False
    metadata: dict[str, str] = {}


class Adapter:
    """A worker's tools as a class: one instance for each worker process.

    Its tools are the methods marked with :func:`tool`. It is made without arguments; what takes long belongs in
    :meth:`setup`.
    """

    def setup(self) -> Any:
        """Called once, before the first call; may be async. What it raises keeps the worker from starting."""

    def teardown(self) -> Any:
        """Called once, on an orderly stop; may be async."""

    def health(self) -> Any:
        """Whether the worker is fit to serve; may be async. False, or an exception, gets it replaced."""
        return True


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    critical: bool = False,
    idempotent: bool = False,
    inline: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Callable[[F], F]: ...


def tool(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    critical: bool = False,
    idempotent: bool = False,
    inline: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """Mark a function or method as a tool. A generator, sync or async, is a streaming tool.

    Args:
        name: What it is called; the function's own name by default.
        description: What it does; the first paragraph of its docstring by default.
        critical: It can't be replaced by another tool of the same name.
        idempotent: It may be run again when a worker died under it.
        inline: It is promised to be short, well below a millisecond, and never to block: it is run by the thread that
            does the worker's I/O, as soon as its call has arrived. While it runs the worker answers nothing, so one that
            takes long looks like a worker that hangs. For plain functions only; it can't wait for the host.
        metadata: Text that says more about it.

    Raises:
        InvalidParameter: The name is not a letter followed by up to 63 letters, digits, ``_``, ``.`` or ``-``.
    """

    def mark(fn: Any) -> Any:
        inner = fn.__func__ if isinstance(fn, staticmethod | classmethod) else fn
        chosen = inner.__name__ if name is None else name
        if not isinstance(chosen, str) or not TOOL_NAME.fullmatch(chosen):
            raise InvalidParameter(
                f"a tool can't be called {chosen!r}: a letter, then up to 63 letters, digits, '_', '.' or '-'",
                details={"path": "name"},
            )
        text = description
        if text is None:
            text = (inner.__doc__ or "").strip().split("\n\n")[0]
            text = " ".join(text.split())
        setattr(inner, _MARK, ToolOptions(chosen, text, critical, idempotent, inline, dict(metadata or {})))
        return fn

    return mark if function is None else mark(function)


def options_of(function: Any) -> ToolOptions | None:
    """What ``@tool`` was given for this function or what wraps it, None when it is no tool."""
    # A module holds all that it has imported, and there are objects that raise whatever they are asked.
    found = attempt(None, getattr, attempt(function, getattr, function, "__func__"), _MARK)
    return found if type(found) is ToolOptions else None


def load_adapter(reference: str) -> tuple[ModuleType, Any]:
    """Import what ``"module"`` or ``"module:Class"`` names.

    Returns:
        The module, and the object that holds the tools: the module itself, or an instance of the class.

    Raises:
        Exception: Whatever the import, the look-up or the constructor raises.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = import_adapter(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise
        # The adapter itself is not there: where the import machinery noticed says nothing more.
        hint = f"; write {module_name[:-3]!r}, without '.py'" if module_name.endswith(".py") else ""
        raise ModuleNotFoundError(f"{exc}{hint}", name=exc.name) from None
    if not attribute:
        return module, module
    target: Any = module
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError as exc:
            known = ", ".join(repr(f"{module_name}:{name}") for name in adapters_in(module))
            raise AttributeError(f"{exc}{f'; its adapters: {known}' if known else ''}") from None
    if isinstance(target, type):
        with being_set_up(module_name):
            target = target()
    return module, target


def adapters_in(module: ModuleType) -> list[str]:
    """The names of a module's own subclasses of :class:`Adapter`."""
    return [
        name
        for name, value in vars(module).items()
        if issubclass(type(value), type) and issubclass(value, Adapter) and value.__module__ == module.__name__
    ]
