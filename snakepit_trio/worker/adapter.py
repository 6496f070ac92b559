"""The adapter SDK: marks a module's or class's functions as tools."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar, overload

import msgspec

from snakepit_trio._exceptions import attempt
from snakepit_trio.errors import InvalidParameter

from .importing import being_set_up, import_adapter

__all__ = ["TOOL_NAME", "Adapter", "ToolOptions", "adapters_in", "load_adapter", "options_of", "tool", "underlying"]

#: The allowed names of tools.
TOOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_MARK = "__snakepit_tool__"

F = TypeVar("F", bound=Callable[..., Any])


class ToolOptions(msgspec.Struct, frozen=True):
    """The arguments of ``@tool``."""

    name: str
    description: str = ""
    critical: bool = False
    idempotent: bool = False
    inline: bool = False
    metadata: dict[str, str] = {}


class Adapter:
    """A worker's tools as a class: one instance for each worker process.

    The tools are the methods marked with :func:`tool`. The class is instantiated without arguments; slow initialisation
    belongs in :meth:`setup`.
    """

    def setup(self) -> Any:
        """Called once, before the first call; may be async. An exception prevents the worker from starting."""

    def teardown(self) -> Any:
        """Called once, on an orderly stop; may be async."""

    def health(self) -> Any:
        """Return whether the worker can serve; may be async. False or an exception causes the worker's replacement."""
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
    """Mark a function or method as a tool. A generator function, sync or async, is a streaming tool.

    Args:
        name: The tool's name; by default the function's name.
        description: The description; by default the first paragraph of the docstring.
        critical: The tool can't be replaced by another tool of the same name.
        idempotent: The tool may run again if a worker dies during its call.
        inline: A promise that the tool takes well below a millisecond and never blocks. The thread that does the
            worker's I/O runs it as soon as its call has arrived, and the worker answers nothing else meanwhile, so a
            slow inline tool makes the worker look unresponsive. Only for plain functions; the tool can't wait for the
            host.
        metadata: Strings about the tool.

    Of what can't be marked itself, such as a built-in function or a bound method, a :class:`functools.partial` is given
    back. In the body of a class put it into ``staticmethod(...)``, for it gets no ``self``.

    Raises:
        InvalidParameter: It can't be a tool, which is said of a class, of what takes ``*args``, and of what does not show its
            parameters. Or the name is not a letter followed by up to 63 letters, digits, ``_``, ``.`` or ``-``.
    """

    def mark(fn: Any) -> Any:
        if not isinstance(fn, staticmethod | classmethod):
            fn = _markable(fn)
        inner = fn.__func__ if isinstance(fn, staticmethod | classmethod) else fn
        written = underlying(inner)
        chosen = getattr(written, "__name__", None) if name is None else name
        if not isinstance(chosen, str) or not TOOL_NAME.fullmatch(chosen):
            hint = "" if name is not None else "; give it a name: @tool(name=...)"
            raise InvalidParameter(
                f"a tool can't be called {chosen!r}: a letter, then up to 63 letters, digits, '_', '.' or '-'{hint}",
                details={"path": "name"},
            )
        text = description
        if text is None:
            text = (written.__doc__ or "").strip().split("\n\n")[0]
            text = " ".join(text.split())
        setattr(inner, _MARK, ToolOptions(chosen, text, critical, idempotent, inline, dict(metadata or {})))
        return fn

    return mark if function is None else mark(function)


def underlying(function: Any) -> Any:
    """The function that was written, behind partial objects and bound methods; of another callable object its ``__call__``."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        else:
            break
    if isinstance(function, type) or hasattr(function, "__name__") or not callable(function):
        return function
    return type(function).__call__


def _markable(fn: Any) -> Any:
    """What is marked in the place of a callable: itself, or a partial object where it can't have attributes of its own.

    Raises:
        InvalidParameter: It can't be a tool; says why.
    """
    if isinstance(fn, FunctionType):
        return fn
    if isinstance(fn, str):
        problem = f"takes a name by keyword: @tool(name={fn!r})"
    elif isinstance(fn, type):
        kind = fn.__name__
        problem = f"marks functions, and {kind!r} is a class: mark its methods, and give 'module:{kind}' as the adapter"
    elif not callable(fn):
        problem = f"marks functions, not an object of type {type(fn).__name__}"
    else:
        made = fn if isinstance(fn, functools.partial) else functools.partial(fn)
        try:
            parameters = inspect.signature(made).parameters.values()
        except (TypeError, ValueError):
            problem = f"can't see the parameters of {fn!r}: write a function that calls it"
        else:
            if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters):
                return made if isinstance(fn, functools.partial) or not _takes_attributes(fn) else fn
            problem = f"marks what can be called by names, and {fn!r} takes *args: write a function that calls it"
    raise InvalidParameter(f"@tool {problem}", details={"path": "function"})


def _takes_attributes(fn: Any) -> bool:
    return hasattr(fn, "__dict__") and hasattr(fn, "__name__") and not isinstance(fn, MethodType | BuiltinFunctionType)


def options_of(function: Any) -> ToolOptions | None:
    """Return the arguments of ``@tool`` for this function or its wrapper, or None if it is not a tool."""
    # A module contains everything that it has imported, and some objects raise on any attribute access.
    found = attempt(None, getattr, attempt(function, getattr, function, "__func__"), _MARK)
    return found if type(found) is ToolOptions else None


def load_adapter(reference: str) -> tuple[ModuleType, Any]:
    """Import the adapter ``"module"`` or ``"module:Class"``.

    Returns:
        The module, and the object that holds the tools: the module itself, or an instance of the class.

    Raises:
        Exception: Any exception of the import, the look-up or the constructor.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = import_adapter(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise
        # The adapter itself is missing, so frames of the import machinery add nothing.
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
    """Return the names of a module's own subclasses of :class:`Adapter`."""
    return [
        name
        for name, value in vars(module).items()
        if issubclass(type(value), type) and issubclass(value, Adapter) and value.__module__ == module.__name__
    ]
