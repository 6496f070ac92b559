"""Ctrl-C must not strike in the middle of the books, and arrives as what it is.

Trio raises KeyboardInterrupt wherever the main thread happens to be, unless the code there is protected; the interrupt then
waits for the main task's next checkpoint, and no shield keeps it from that. The library's own tasks, and whatever changes
shared state in its callers' tasks, are protected. See
https://trio.readthedocs.io/en/stable/reference-lowlevel.html#low-level-blocking and ``trio.lowlevel.enable_ki_protection``.
asyncio's runner cancels the main task at the first Ctrl-C, and raises at the second one wherever the loop happens to be.

A nursery puts what it raises into a group. An interrupt of the application (KeyboardInterrupt, SystemExit) that has come through
a nursery of the library's own is taken out again: whoever uses the library does not know of that nursery.
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

__all__ = ["Unwrapped", "exposed", "interrupt_in", "managed", "pass_interrupt", "protected"]

_log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")
_P = ParamSpec("_P")


def protected(function: _F) -> _F:
    """Mark a function: no KeyboardInterrupt is raised inside it, or in what it calls."""
    return trio.lowlevel.enable_ki_protection(function)


def exposed(function: _F) -> _F:
    """Mark a function that runs code of the application: it may be interrupted though whoever calls it is protected."""
    return trio.lowlevel.disable_ki_protection(function)


def managed(function: Callable[_P, AsyncIterator[_T]]) -> Callable[_P, AbstractAsyncContextManager[_T]]:
    """As :func:`contextlib.asynccontextmanager`, for what must not be lost between its making and its block: while that is
    entered and left, a KeyboardInterrupt is raised only where something is waited for."""
    protected(function)
    make = asynccontextmanager(function)

    @functools.wraps(function)
    def begin(*args: _P.args, **options: _P.kwargs) -> AbstractAsyncContextManager[_T]:
        return _Managed(make(*args, **options))

    return begin


class _Managed(AbstractAsyncContextManager[_T]):
    def __init__(self, inner: AbstractAsyncContextManager[_T]) -> None:
        self._inner = inner

    @protected
    async def __aenter__(self) -> _T:
        return await self._inner.__aenter__()

    @protected
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, exc, traceback)


def interrupt_in(exc: BaseException) -> BaseException | None:
    """The KeyboardInterrupt or SystemExit that an exception is, or that is in its group."""
    return next((found for found in (exc, *leaves_of(exc)[0]) if _is_interrupt(found)), None)


def _is_interrupt(exc: BaseException) -> bool:
    return is_a(exc, (KeyboardInterrupt, SystemExit))


def _interrupt_behind(exc: BaseException, old: BaseException | None) -> BaseException | None:
    """The interrupt that is in a group, or in the middle of which a failure has come; but for those that had come before."""
    passed = {id(found) for found in _with_causes(old)}
    for found in _with_causes(exc):
        if id(found) in passed:
            return None
        interrupt = interrupt_in(found)
        if interrupt is not None:
            return interrupt
        if not isinstance(found, Exception):
            # A cancellation: what the application had done with an interrupt before it is the application's.
            return None
        for leaf in leaves_of(found)[0]:
            interrupt = _interrupt_behind(leaf, old)
            if interrupt is not None:
                return interrupt
    return None


def pass_interrupt(exc: BaseException, old: BaseException | None) -> None:
    """Raise the interrupt in the middle of which a failure of the library's own has come, if there is one.

    On asyncio a second one strikes anywhere, also where a scope can't be left any more.

    Args:
        old: What its caller was handling before that.
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
    """An exception, and what was being handled when it came, and so on."""
    passed: set[int] = set()
    while exc is not None and id(exc) not in passed:
        passed.add(id(exc))
        yield exc
        exc = exc.__context__


class Unwrapped:
    """Around a nursery of the library's own in its caller's task: nothing leaves it in a group that the caller would not know of.

    ``with Unwrapped() as unwrapped:`` around the nursery, and ``unwrapped.raised = exc`` in it.

    Attributes:
        raised: What the caller's block has raised; raised again at the end, whatever else has failed by then. Only an
            interrupt goes before it.
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
