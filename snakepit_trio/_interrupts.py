"""Handling of Ctrl-C: it must not interrupt updates of shared state, and must reach the application unchanged.

Trio raises KeyboardInterrupt wherever the main thread is, unless the code there is protected; a protected interrupt waits
for the main task's next checkpoint, and no shield stops it there. The library's own tasks, and changes to shared state in
callers' tasks, are protected. See https://trio.readthedocs.io/en/stable/reference-lowlevel.html#low-level-blocking and
``trio.lowlevel.enable_ki_protection``. asyncio's runner cancels the main task at the first Ctrl-C, and at the second one
raises wherever the loop is.

A nursery wraps its exceptions into a group. An application's interrupt (KeyboardInterrupt, SystemExit) that comes through
one of the library's nurseries is taken out of the group, because the application does not know that nursery.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import NoReturn, ParamSpec, TypeVar

import trio

from ._exceptions import is_a, leaves_of

__all__ = ["Block", "Unwrapped", "exposed", "interrupt_in", "managed", "pass_interrupt", "protected"]

_log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")
_P = ParamSpec("_P")


def protected(function: _F) -> _F:
    """Decorate a function: no KeyboardInterrupt is raised in it or in the functions that it calls."""
    return trio.lowlevel.enable_ki_protection(function)


def exposed(function: _F) -> _F:
    """Decorate a function that runs the application's code: it may be interrupted even if its caller is protected."""
    return trio.lowlevel.disable_ki_protection(function)


def managed(function: Callable[_P, AsyncIterator[_T]]) -> Callable[_P, AbstractAsyncContextManager[_T]]:
    """Work as :func:`contextlib.asynccontextmanager`, for resources that must not be lost between creation and block.

    While the block is entered and left, a KeyboardInterrupt is raised only at a wait.
    """
    protected(function)
    make = asynccontextmanager(function)

    @functools.wraps(function)
    def begin(*args: _P.args, **options: _P.kwargs) -> AbstractAsyncContextManager[_T]:
        return _Managed(make(*args, **options), function.__name__)

    return begin


#: The application's call that opens a block, where it has another name, and what it gives.
_OPENED = {
    "open_pool": ("open_pool", "pool"),
    "open_runtime": ("open_runtime", "runtime"),
    "connection": ("connect", "client"),
    "registration": ("serve_tools", "served"),
    "subscribe": ("subscribe", "events"),
    "map": ("map", "results"),
    "stream": ("stream", "chunks"),
    "session": ("session", "session"),
}


class Block(AbstractAsyncContextManager[_T]):
    """A block that has not been entered: whoever uses it in another way is told how it is entered.

    Attributes:
        opener: What has opened it.
    """

    __slots__ = ()
    opener: str

    def _entered(self) -> str:
        call, name = _OPENED.get(self.opener, (self.opener, "opened"))
        then = f"`async for ... in {name}`" if name in ("results", "chunks", "events") else f"use `{name}`"
        return f"{call}(...) opens a block: write `async with {call}(...) as {name}:`, and {then} inside"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"no attribute {name!r}: {self._entered()}", name=name, obj=self)

    def __aiter__(self) -> NoReturn:
        raise TypeError(self._entered())

    def __iter__(self) -> NoReturn:
        raise TypeError(self._entered())

    def __await__(self) -> NoReturn:
        raise TypeError(self._entered())

    def __enter__(self) -> NoReturn:
        raise TypeError(self._entered())

    def __exit__(self, *exc: object) -> None:
        """Never called; `with` looks for it."""


class _Managed(Block[_T]):
    __slots__ = ("_inner", "opener")

    def __init__(self, inner: AbstractAsyncContextManager[_T], opener: str) -> None:
        self._inner = inner
        self.opener = opener

    @protected
    async def __aenter__(self) -> _T:
        return await self._inner.__aenter__()

    @protected
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, exc, traceback)


def interrupt_in(exc: BaseException) -> BaseException | None:
    """Return the KeyboardInterrupt or SystemExit that the exception is, or that is in its group."""
    return next((found for found in (exc, *leaves_of(exc)[0]) if _is_interrupt(found)), None)


def _is_interrupt(exc: BaseException) -> bool:
    return is_a(exc, (KeyboardInterrupt, SystemExit))


def _interrupt_behind(exc: BaseException, old: BaseException | None) -> BaseException | None:
    """Return the interrupt in a group, or the one during which a failure happened, except interrupts from before ``old``."""
    passed = {id(found) for found in _with_causes(old)}
    for found in _with_causes(exc):
        if id(found) in passed:
            return None
        interrupt = interrupt_in(found)
        if interrupt is not None:
            return interrupt
        if not isinstance(found, Exception):
            # A cancellation: an interrupt before it was the application's to handle.
            return None
        for leaf in leaves_of(found)[0]:
            interrupt = _interrupt_behind(leaf, old)
            if interrupt is not None:
                return interrupt
    return None


def pass_interrupt(exc: BaseException, old: BaseException | None) -> None:
    """Raise the interrupt during which a failure of the library happened, if there is one.

    On asyncio a second interrupt strikes anywhere, even where a scope can't be left any more.

    Args:
        exc: The failure.
        old: The exception that the caller was handling before.
    """
    interrupt = _interrupt_behind(exc, old)
    if interrupt is not None:
        _raise_as_it_was(interrupt)


def _raise_as_it_was(exc: BaseException) -> NoReturn:
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context


def _with_causes(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, and then the chain of its contexts."""
    passed: set[int] = set()
    while exc is not None and id(exc) not in passed:
        passed.add(id(exc))
        yield exc
        exc = exc.__context__


class Unwrapped:
    """Wraps one of the library's nurseries in its caller's task, so that no exception leaves in a group unknown to the
    caller.

    Use ``with Unwrapped() as unwrapped:`` around the nursery, and set ``unwrapped.raised = exc`` inside it.

    Attributes:
        raised: The exception of the caller's block. It is raised again at the end, whatever else has failed; only an
            interrupt takes precedence.
    """

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self._old: BaseException | None = None

    def __enter__(self) -> Unwrapped:
        self._old = sys.exception()
        return self

    @protected
    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        result = self.raised
        if exc is not None and (result is None or not _is_interrupt(result)):
            result = _interrupt_behind(exc, self._old) or result
        if result is None:
            return
        rest = exc.split(_is_interrupt)[1] if isinstance(exc, BaseExceptionGroup) else exc
        if isinstance(rest, Exception):
            _log.error("this has failed while something else was raised", exc_info=rest)
        _raise_as_it_was(result)
