"""Exceptions as text, whatever their own code does.

An exception is user code: ``__str__``, ``__notes__``, a metaclass may raise, exit, or return megabytes of text that has no
UTF-8 form. Nothing here raises, but for what is no fault of the exception; all text is bounded and has a UTF-8 form. Attributes
that every exception has are read past its own class, as the interpreter reads them.

A KeyboardInterrupt that arrives while the exception's own code runs is taken for one of its making; callers in a host's main
thread are protected (:mod:`snakepit_trio._interrupts`).
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

#: Characters of a class's name.
_LONGEST_NAME = 200
#: Characters of a text that are looked at; more than any limit on what is kept of one.
_LONGEST = 60 * 1024
#: Bytes of the text of one exception, when several are told on a line.
_LONGEST_LEAF = 500
#: Exceptions of a group that are looked at, and that are told on a line.
_MOST, _MOST_TOLD = 1000, 8
#: A traceback with more frames, or of more exceptions that caused each other, is not formatted as the interpreter would.
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
    """What a function returns that runs code of an exception's; ``default`` when it raises anything."""
    try:
        return function(*args)
    except BaseException:
        return default


def is_a(exc: BaseException, kind: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Whether an exception is of a class: ``isinstance`` asks the exception itself, which may lie or raise."""
    return issubclass(type(exc), kind)


# ---- text ----------------------------------------------------------------------------------------


def exact_text(value: object) -> str | None:
    """A text as a plain one, of no subclass; None for what is no text."""
    return str.__str__(value) if issubclass(type(value), str) else None


def clean(text: str, limit: int) -> str:
    """Text that has a UTF-8 form of at most about ``limit`` bytes: of a longer one, the beginning and the end."""
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
    """What ``str()`` of it gives; of a group, with what its leaves say."""
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
    """The last line of its traceback: its class and its text."""
    text = text_of(exc, limit)
    return f"{type_name(exc)}: {text}" if text else type_name(exc)


# ---- classes -------------------------------------------------------------------------------------


def qualified_name(cls: type) -> str:
    """``module.QualName`` of a class."""
    module = exact_text(_module_of(cls)) or "?"
    return sound_name(f"{module}.{exact_text(_qualname_of(cls)) or '?'}")


def sound_name(name: str) -> str:
    """A qualified name by which a class can be made: bounded, with a UTF-8 form, and without a zero in it. Idempotent."""
    if not name.isascii() or "\0" in name:
        name = name.replace("\0", "\\x00").encode(errors="backslashreplace").decode()
    if len(name) > _LONGEST_NAME:
        half = (_LONGEST_NAME - 3) // 2
        name = f"{name[:half]}...{name[-half:]}"
    return name


def display_name(qualified: str) -> str:
    """The name for people: a built-in exception without its module."""
    return qualified.removeprefix("builtins.")


def type_name(exc: BaseException) -> str:
    """Its class's name for people."""
    return display_name(qualified_name(type(exc)))


def bare_name(exc: BaseException) -> str:
    """Its class's name without module or outer classes."""
    return sound_name(exact_text(_name_of(type(exc))) or "?")


def class_names(exc: BaseException) -> list[str]:
    """The qualified names of its class and of that one's bases, nearest first."""
    return [qualified_name(cls) for cls in _mro_of(type(exc)) if cls is not object]


# ---- groups --------------------------------------------------------------------------------------


def leaves_of(exc: BaseException) -> tuple[list[BaseException], bool]:
    """The exceptions in a group that are no groups themselves, in order, and whether there may be more; none for any other."""
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
    """Whether it is a KeyboardInterrupt, or a group with one in it."""
    return is_a(exc, KeyboardInterrupt) or any(is_a(leaf, KeyboardInterrupt) for leaf in leaves_of(exc)[0])


# ---- tracebacks ----------------------------------------------------------------------------------


def traceback_of(exc: BaseException, limit: int = _LONGEST, *, hidden: tuple[str, ...] = ()) -> str:
    """Its traceback, formatted.

    Args:
        exc: The exception.
        limit: Bytes.
        hidden: What the names of modules begin with whose frames say nothing when they stand above all others.
    """
    trace = _visible(exc, hidden)
    if _is_usual(exc, trace):
        try:
            told = traceback.TracebackException(type(exc), exc, trace, compact=True)
            return clean("".join(clean(line, limit) for line in told.format()), limit)
        except BaseException:
            pass  # Code of the exception's, or of a module loader's, that the standard library has called.
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
    # A module that is missing or does not parse has no frame of its own, and its message says where.
    return trace if trace is not None or is_a(exc, (ImportError, SyntaxError)) else whole


def _module_name(trace: TracebackType) -> str:
    return exact_text(attempt(None, trace.tb_frame.f_globals.get, "__name__")) or ""


def _is_usual(exc: BaseException, trace: TracebackType | None) -> bool:
    """Whether the standard library formats it in a bounded time."""
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
