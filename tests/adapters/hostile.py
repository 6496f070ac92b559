"""Exceptions whose own code does what an exception's should not, errors that only the library should speak of itself with, and
tools that raise them."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import snakepit_trio as sp
from snakepit_trio import errors

LONE = os.fsdecode(b"caf\xe9")
HUGE = 1 << 20

RUNS: dict[str, int] = {}


class Raising(Exception):
    """Its own code raises whatever it is made with."""

    def __init__(self, what: BaseException) -> None:
        self.what = what

    def _raise(self, *_: Any) -> Any:
        raise self.what

    __str__ = __repr__ = __format__ = __reduce__ = __dir__ = _raise  # type: ignore[assignment]
    __notes__ = property(_raise)  # type: ignore[assignment]
    __class__ = property(_raise)  # type: ignore[assignment]
    __traceback__ = property(_raise)  # type: ignore[assignment]
    __cause__ = property(_raise)  # type: ignore[assignment]
    __context__ = property(_raise)  # type: ignore[assignment]


class _Meta(type):
    def _exit(cls, *_: Any) -> Any:
        raise SystemExit(3)

    __getattribute__ = _exit  # type: ignore[assignment]
    __instancecheck__ = __subclasscheck__ = __hash__ = __eq__ = __repr__ = _exit  # type: ignore[assignment]


class OfAMetaclass(Exception, metaclass=_Meta):
    pass


class NoText(Exception):
    __str__ = lambda self: 5  # type: ignore[assignment,return-value] # noqa: E731


class _Text(str):
    __slots__ = ()

    def encode(self, *_: Any) -> bytes:  # type: ignore[override]
        raise SystemExit(4)

    __str__ = __len__ = __getitem__ = isascii = encode  # type: ignore[assignment]


class OddText(Exception):
    def __str__(self) -> str:
        return _Text("odd")


class Lying(Exception):
    __class__ = sp.QueueFull  # type: ignore[assignment]


class Uninitialized(sp.SnakepitError):
    def __init__(self) -> None:
        pass


class Properties(sp.InvalidParameter):
    def _exit(self, *_: Any) -> Any:
        raise SystemExit(5)

    code = details = message = retryable = property(_exit)  # type: ignore[assignment]
    __str__ = _exit  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


class _Map(Mapping[Any, Any]):
    def _exit(self, *_: Any) -> Any:
        raise SystemExit(6)

    __getitem__ = __iter__ = __len__ = _exit  # type: ignore[assignment]


class _Key:
    def _exit(self) -> Any:
        raise SystemExit(7)

    __str__ = __repr__ = _exit


class OddGroup(ExceptionGroup[Exception]):
    exceptions = property(lambda self: (_ for _ in ()).throw(SystemExit(8)))  # type: ignore[assignment]


def with_attributes(error: sp.SnakepitError, **attributes: Any) -> sp.SnakepitError:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def named(name: str, module: Any = __name__) -> Exception:
    cls = type("Named", (Exception,), {"__module__": module})
    cls.__qualname__ = name
    made: Exception = cls("named")
    return made


def nested(depth: int, leaf: Exception) -> Exception:
    for _ in range(depth):
        leaf = ExceptionGroup("deeper", [leaf])
    return leaf


def in_a_circle() -> Exception:
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    return first


def chained(length: int) -> Exception:
    error = ValueError("first")
    for number in range(length):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    return error


def noted(*notes: Any) -> Exception:
    error = ValueError("noted")
    error.__notes__ = list(notes)  # type: ignore[attr-defined]
    return error


def recursion() -> Exception:
    def again(depth: int) -> int:
        return again(depth + 1) + 1

    try:
        again(0)
    except RecursionError as exc:
        return exc
    raise AssertionError


#: By name, what makes an exception.
KINDS: dict[str, Callable[[], BaseException]] = {
    "own text has no UTF-8 form": lambda: sp.InvalidParameter(f"no such file: {LONE}"),
    "text has no UTF-8 form": lambda: FileNotFoundError(2, "no such file", LONE),
    "details' key has no UTF-8 form": lambda: sp.SnakepitError("x", details={LONE: LONE}),
    "details' keys are no text": lambda: sp.SnakepitError("x", details={1: "a", None: 2, (3,): LONE, _Key(): 4}),  # type: ignore[dict-item]
    "details is None": lambda: with_attributes(sp.SnakepitError("x"), details=None),
    "details is a list": lambda: with_attributes(sp.SnakepitError("x"), details=[1]),
    "details raise": lambda: with_attributes(sp.SnakepitError("x"), details=_Map()),
    "details can't travel": lambda: sp.SnakepitError("x", details={"a": object(), "b": Raising(SystemExit(1)), "c": 3}),
    "details are many": lambda: sp.SnakepitError("x", details={str(n): n for n in range(100_000)}),
    "details are large": lambda: sp.SnakepitError(
        "x", details={"text": "x" * HUGE, "bytes": bytes(HUGE), "n": 10**5000}
    ),
    "code is a number": lambda: sp.SnakepitError("x", code=5),  # type: ignore[arg-type]
    "code is a list": lambda: sp.SnakepitError("x", code=[]),  # type: ignore[arg-type]
    "code is empty": lambda: sp.SnakepitError("x", code=""),
    "code has no UTF-8 form": lambda: sp.SnakepitError("x", code=LONE),
    "code is long": lambda: sp.SnakepitError("x", code="c" * HUGE),
    "message is no text": lambda: with_attributes(sp.SnakepitError("x"), message=5),
    "message is an odd text": lambda: with_attributes(sp.SnakepitError("x"), message=_Text("odd"), code=_Text("odd")),
    "it was not initialized": Uninitialized,
    "its properties exit": Properties,
    "its class has a name without a UTF-8 form": lambda: named("a\ud800"),
    "its class has a zero in its name": lambda: named("a\0b"),
    "its class has a long name": lambda: named("n" * HUGE),
    "its class has no module": lambda: named("n", None),
    "its class has an odd module": lambda: named("n", 5),
    "its class has a metaclass that exits": OfAMetaclass,
    "it lies about its class": Lying,
    "str() of it raises": lambda: Raising(RuntimeError("no")),
    "str() of it exits": lambda: Raising(SystemExit(3)),
    "str() of it interrupts": lambda: Raising(KeyboardInterrupt()),
    "str() of it raises itself": lambda: Raising(Raising(RecursionError())),
    "str() of it gives no text": NoText,
    "str() of it gives an odd text": OddText,
    "its text is huge": lambda: ValueError("x" * HUGE),
    "its text is huge in bytes": lambda: ValueError("\U0001f40d" * (HUGE // 4)),
    "its notes are odd": lambda: noted(5, LONE, "n" * HUGE, _Text("odd"), _Key()),
    "its traceback is long": recursion,
    "it is its own cause": in_a_circle,
    "it has many causes": lambda: chained(5000),
    "a group": lambda: ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    "a group of hostile ones": lambda: ExceptionGroup(
        "several", [Raising(SystemExit(1)), OfAMetaclass(), named("a\ud800")]
    ),
    "a group of many": lambda: ExceptionGroup("several", [ValueError(str(n)) for n in range(5000)]),
    "a group of groups": lambda: nested(5000, ValueError("deep")),
    "a group that lies about its leaves": lambda: OddGroup("odd", [ValueError("one")]),
    "a group that ends everything": lambda: BaseExceptionGroup("all", [SystemExit(1), asyncio.CancelledError()]),
    "odd remote types": lambda: sp.ToolError("x", remote_types=(1, None, LONE, "a.B"), remote_message=5),  # type: ignore[arg-type]
    "odd leaves": lambda: sp.ToolError("x", remote_types=("a.B",), leaves=(1, ValueError())),  # type: ignore[arg-type]
    "SystemExit": lambda: SystemExit(1),
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": lambda: StopAsyncIteration(1),
    "MemoryError": MemoryError,
}


def said(cls: type[sp.SnakepitError], code: str | None = None) -> sp.SnakepitError:
    return cls("said by a tool", code=code, details={"phase": "queued", "poison": True}, retryable=True)


_CODES = ("recalled", "not_begun", "undone", "stopped", "leaving", "expired", "cancelled", "poison", "internal")
#: By name, what makes an error that means something when the library raises it, or sounds so.
SIGNALS: dict[str, Callable[[], sp.SnakepitError]] = {
    **{name: functools.partial(said, getattr(errors, name)) for name in errors.__all__ if name != "remote"},
    **{code: functools.partial(said, sp.SnakepitError, code) for code in _CODES},
}


def make(kind: str) -> BaseException:
    return (KINDS.get(kind) or SIGNALS[kind])()


def ran(kind: str) -> None:
    RUNS[kind] = RUNS.get(kind, 0) + 1


@sp.tool
def plain(kind: str) -> None:
    ran(kind)
    raise make(kind)


@sp.tool(inline=True)
def inline(kind: str) -> None:
    ran(kind)
    raise make(kind)


@sp.tool
def chunks(kind: str) -> Iterator[int]:
    ran(kind)
    yield 1
    raise make(kind)


@sp.tool
def host(ctx: sp.ToolContext, kind: str) -> str:
    """What a host tool's exception is here."""
    try:
        ctx.call_host_sync("fail", {"kind": kind})
    except sp.SnakepitError as exc:
        return type(exc).__name__
    return "nothing"


@sp.tool
def passes_on(ctx: sp.ToolContext, kind: str) -> None:
    """Let a host tool's exception out."""
    ran(kind)
    ctx.call_host_sync("fail", {"kind": kind})


@sp.tool
def runs() -> dict[str, int]:
    """How often each kind was asked for, since this was last asked."""
    found = dict(RUNS)
    RUNS.clear()
    return found


@sp.tool
def ok() -> int:
    return os.getpid()
