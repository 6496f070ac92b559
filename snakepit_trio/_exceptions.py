"""Text and types of exceptions, read safely.

An exception is user code: ``__str__``, ``__notes__`` or a metaclass may raise, exit, or return megabytes of text without
a UTF-8 form. These functions do not raise, except for faults of their caller. All returned text is bounded and has a
UTF-8 form. Standard attributes of an exception are read past its own class, as the interpreter reads them.

A KeyboardInterrupt during an exception's own code is taken for one that the code raised; callers in a host's main thread
are protected (:mod:`snakepit_trio._interrupts`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

__all__ = [
    "attempt",
    "bare_name",
    "class_names",
    "clean",
    "display_name",
    "exact_text",
    "holds_interrupt",
    "is_a",
    "leaves_of",
    "one_line",
    "qualified_name",
    "sound_name",
    "text_of",
    "traceback_of",
    "type_name",
]

T = TypeVar("T")

#: The largest number of characters of a class's name.
_LONGEST_NAME = 200
#: The largest number of characters of a text that are read; more than any limit on the text kept.
_LONGEST = 60 * 1024
#: The largest number of bytes of one exception's text if several are shown on a line.
_LONGEST_LEAF = 500
#: The largest number of exceptions of a group that are read, and that are shown on a line.
_MOST, _MOST_TOLD = 1000, 8
#: A traceback with more frames, or more chained exceptions, is not formatted by the standard library.
_MOST_FRAMES, _MOST_CAUSES = 500, 64

_module_of = type.__dict__["__module__"].__get__
_name_of = type.__dict__["__name__"].__get__
_qualname_of = type.__dict__["__qualname__"].__get__
_mro_of = type.__dict__["__mro__"].__get__
_traceback_of = BaseException.__dict__["__traceback__"].__get__
_cause_of = BaseException.__dict__["__cause__"].__get__
_context_of = BaseException.__dict__["__context__"].__get__
_exceptions_of = BaseExceptionGroup.__dict__["exceptions"].__get__


def attempt(default: T, function: Callable[..., T], *args: Any) -> T:
    """Call a function that runs an exception's own code, and return its result, or ``default`` if it raises anything."""
    try:
        return function(*args)
    except BaseException:
        return default


def is_a(exc: BaseException, kind: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Return whether an exception is of a class, without ``isinstance``, which asks the exception and may get a lie or an
    error.
    """
    return issubclass(type(exc), kind)


# ---- text ----------------------------------------------------------------------------------------


def exact_text(value: object) -> str | None:
    """Return a string as an exact ``str`` and not a subclass, or None for any other value."""
    return str.__str__(value) if issubclass(type(value), str) else None


def clean(text: str, limit: int) -> str:
    """Return text with a UTF-8 form of at most about ``limit`` bytes; of longer text, the beginning and the end."""
    if len(text) <= limit:
        if text.isascii():
            return text
        raw = text.encode(errors="backslashreplace")
        if len(raw) <= limit:
            return raw.decode()
    half = (limit - 40) // 2
    head = text[:half].encode(errors="backslashreplace")[:half].decode(errors="ignore")
    tail = text[-half:].encode(errors="backslashreplace")[-half:].decode(errors="ignore")
    return f"{head}\n[... {max(0, len(text) - len(head) - len(tail))} characters left out ...]\n{tail}"


def text_of(exc: BaseException, limit: int = _LONGEST) -> str:
    """Return ``str()`` of an exception; for a group, with the text of its leaves."""
    try:
        text = str.__str__(str(exc))
    except BaseException as broken:
        text = f"<str() of it raised {type_name(broken)}>"
    if is_a(exc, BaseExceptionGroup):
        leaves, more = leaves_of(exc)
        told = [one_line(leaf) for leaf in leaves[:_MOST_TOLD]]
        if more or len(leaves) > _MOST_TOLD:
            told.append("and others")
        text = f"{clean(text, _LONGEST_LEAF)}: {'; '.join(told)}"
    return clean(text, limit)


def one_line(exc: BaseException, limit: int = _LONGEST_LEAF) -> str:
    """Return the last line of the exception's traceback: its class and its text."""
    text = text_of(exc, limit)
    return f"{type_name(exc)}: {text}" if text else type_name(exc)


# ---- classes -------------------------------------------------------------------------------------


def qualified_name(cls: type) -> str:
    """Return ``module.QualName`` of a class."""
    module = exact_text(_module_of(cls)) or "?"
    return sound_name(f"{module}.{exact_text(_qualname_of(cls)) or '?'}")


def sound_name(name: str) -> str:
    """Return a qualified name that can name a new class: bounded, with a UTF-8 form, without a NUL. Idempotent."""
    if not name.isascii() or "\0" in name:
        name = name.replace("\0", "\\x00").encode(errors="backslashreplace").decode()
    if len(name) > _LONGEST_NAME:
        half = (_LONGEST_NAME - 3) // 2
        name = f"{name[:half]}...{name[-half:]}"
    return name


def display_name(qualified: str) -> str:
    """Return a class's name for people: a built-in exception without its module."""
    return qualified.removeprefix("builtins.")


def type_name(exc: BaseException) -> str:
    """Return the name of the exception's class for people."""
    return display_name(qualified_name(type(exc)))


def bare_name(exc: BaseException) -> str:
    """Return the name of the exception's class without module and outer classes."""
    return sound_name(exact_text(_name_of(type(exc))) or "?")


def class_names(exc: BaseException) -> list[str]:
    """Return the qualified names of the exception's class and its bases, nearest first."""
    return [qualified_name(cls) for cls in _mro_of(type(exc)) if cls is not object]


# ---- groups --------------------------------------------------------------------------------------


def leaves_of(exc: BaseException) -> tuple[list[BaseException], bool]:
    """Return the leaves of an exception group in order, and whether there may be more; no leaves for any other exception."""
    leaves: list[BaseException] = []
    if not is_a(exc, BaseExceptionGroup):
        return leaves, False
    ahead = [exc]
    for _ in range(_MOST):
        if not ahead:
            return leaves, False
        found = ahead.pop()
        if is_a(found, BaseExceptionGroup):
            ahead += reversed(_exceptions_of(found)[:_MOST])
        else:
            leaves.append(found)
    return leaves, bool(ahead)


def holds_interrupt(exc: BaseException) -> bool:
    """Return whether the exception is a KeyboardInterrupt, or a group that contains one."""
    return is_a(exc, KeyboardInterrupt) or any(is_a(leaf, KeyboardInterrupt) for leaf in leaves_of(exc)[0])


# ---- tracebacks ----------------------------------------------------------------------------------


def traceback_of(exc: BaseException, limit: int = _LONGEST, *, hidden: tuple[str, ...] = ()) -> str:
    """Return the formatted traceback of an exception.

    Args:
        exc: The exception.
        limit: The largest number of bytes.
        hidden: Prefixes of module names whose frames are omitted if they are above all others.
    """
    trace = _visible(exc, hidden)
    if _is_usual(exc, trace):
        try:
            told = traceback.TracebackException(type(exc), exc, trace, compact=True)
            return clean("".join(clean(line, limit) for line in told.format()), limit)
        except BaseException:
            pass  # The standard library called code of the exception, or of a module loader, that raised.
    lines = ["Traceback (most recent call last):\n"]
    for frame, number in _frames(trace):
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_qualname}\n')
    return clean(f"{''.join(lines)}{one_line(exc, limit)}\n", limit)


def _visible(exc: BaseException, hidden: tuple[str, ...]) -> TracebackType | None:
    whole: TracebackType | None = _traceback_of(exc)
    trace = whole
    while trace is not None and _module_name(trace).startswith(hidden or ("\0",)):
        trace = trace.tb_next
    # A module that is missing or does not parse has no frame, and its message names the place.
    return trace if trace is not None or is_a(exc, (ImportError, SyntaxError)) else whole


def _module_name(trace: TracebackType) -> str:
    return exact_text(attempt(None, trace.tb_frame.f_globals.get, "__name__")) or ""


def _is_usual(exc: BaseException, trace: TracebackType | None) -> bool:
    """Return whether the standard library formats the exception in bounded time."""
    count = 0
    while trace is not None and count <= _MOST_FRAMES:
        trace, count = trace.tb_next, count + 1
    ahead: list[BaseException] = [exc]
    seen: set[int] = set()
    while ahead and len(seen) <= _MOST_CAUSES:
        found = ahead.pop()
        if id(found) not in seen:
            seen.add(id(found))
            ahead += [other for other in (_cause_of(found), _context_of(found)) if other is not None]
            if is_a(found, BaseExceptionGroup):
                ahead += _exceptions_of(found)[: _MOST_CAUSES + 1]
    return not ahead and count <= _MOST_FRAMES


def _frames(trace: TracebackType | None) -> list[tuple[Any, int]]:
    found: list[tuple[Any, int]] = []
    while trace is not None:
        found.append((trace.tb_frame, trace.tb_lineno))
        if len(found) > 2 * _MOST_FRAMES:
            del found[_MOST_FRAMES // 2 : -_MOST_FRAMES // 2]
        trace = trace.tb_next
    return found
