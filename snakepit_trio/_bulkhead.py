"""Boundaries that stop unexpected exceptions, so that an exception ends only the thing for which the code ran.

A runtime has one :class:`InternalErrors`. Each of its tasks in a shared nursery, and each callback that it calls for a
peer, a worker, a request or an observer, runs behind a boundary; docs/architecture.md lists them. An ``Exception`` at a
boundary is reported (logged with its traceback, counted, emitted as the event ``runtime.internal_error``), and the
boundary's owner ends the thing that it protects. Cancellations, and the application's KeyboardInterrupt and SystemExit,
pass.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypeVar

import anyio
import anyio.abc

from snakepit_trio._exceptions import bare_name
from snakepit_trio._home import Home
from snakepit_trio._interrupts import Block, pass_interrupt, protected
from snakepit_trio.errors import SnakepitError

__all__ = ["Bulkhead", "InternalErrors", "block", "internal_error", "operation"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger("snakepit_trio.internal")

#: Seconds before a failed service runs again; the pause doubles with each consecutive failure, up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
#: The number of places with failing observers that are remembered as already logged.
_MOST_PLACES = 256


def internal_error(exc: BaseException, what: str = "request") -> SnakepitError:
    """Return the error of a request that an unexpected exception has ended, with the exception as its cause.

    The error does not contain the exception's text, which may hold anything, because it may be sent to a client of the
    bridge.
    """
    error = SnakepitError(
        f"an internal error of snakepit_trio ({bare_name(exc)}) ended the {what}; its traceback is in the log",
        code="internal",
        details={"error": bare_name(exc)},
    )
    error.__cause__ = exc
    return error


class InternalErrors:
    """The unexpected exceptions of one runtime.

    Args:
        emit: Emits an event: ``emit(name, measurements, **metadata)``.

    Attributes:
        counts: The number of exceptions, by what they ended.
        home: The event loop in which callers must be; None: any.
    """

    #: Set by tests: called with each exception and with what it ended.
    check: ClassVar[Callable[[BaseException, str], None] | None] = None

    def __init__(self, emit: Callable[..., object] | None = None) -> None:
        self.counts: dict[str, int] = {}
        self.home: Home | None = None
        self._emit = emit
        self._reporting = False
        self._logged: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        return f"<InternalErrors {self.counts}>"

    def report(self, exc: BaseException, ended: str, **who: Any) -> None:
        """Log, count and emit an exception. Never raises.

        Args:
            ended: What the exception ends: ``"request"``, ``"worker"``, ``"connection"``, ``"host_call"``,
                ``"operation"``, ``"service"`` (runs again after a pause), or ``"observer"`` (ends nothing; logged once
                per place).
            who: The affected object, as far as known: ``pool``, ``worker_id``, ``request_id``.
        """
        self.counts[ended] = self.counts.get(ended, 0) + 1
        try:
            cls = type(self)
            if cls.check is not None:
                cls.check(exc, ended)
            where = _where(exc)
            if ended != "observer" or self._is_new(where):
                _log.error(
                    "internal error in %s: %s; it ends: %s",
                    where[0],
                    bare_name(exc),
                    ended,
                    exc_info=(type(exc), exc, exc.__traceback__),
                    extra=who,
                )
            if self._emit is not None and not self._reporting:
                self._reporting = True
                try:
                    self._emit("runtime.internal_error", None, ended=ended, error=bare_name(exc), where=where[0], **who)
                finally:
                    self._reporting = False
        except Exception:
            _log.error("an internal error could not be reported: %s", bare_name(exc))

    def check_home(self) -> None:
        """Refuse a caller in another event loop.

        Raises:
            WrongContext: It is.
        """
        if self.home is not None:
            self.home.check()

    def caller(self, exc: Exception, what: str = "request") -> SnakepitError:
        """Report an exception that ended a caller's own request, and return the error for the caller."""
        self.report(exc, "request")
        return internal_error(exc, what)

    def block(self, inner: AbstractAsyncContextManager[T], what: str) -> AbstractAsyncContextManager[T]:
        """Wrap a caller's context manager: exceptions of the block pass, and any other unexpected exception becomes a
        SnakepitError.
        """
        return _Block(self, inner, what)

    def bulkhead(self, ended: str, on_error: Callable[[Exception], object] | None = None, /, **who: Any) -> Bulkhead:
        """Return a boundary: a context manager that reports an unexpected exception and suppresses it.

        Args:
            ended: As in :meth:`report`.
            on_error: Called after the report, to end what the boundary protects. An exception of this function is reported
                as well.
            who: As in :meth:`report`.
        """
        return Bulkhead(self, ended, on_error, who)

    def start(
        self,
        nursery: anyio.abc.TaskGroup,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        ended: str = "operation",
        on_error: Callable[[Exception], object] | None = None,
        **who: Any,
    ) -> None:
        """Start a task behind a boundary, in a shared nursery.

        Args:
            ended, who: As in :meth:`report`.
            on_error: As in :meth:`bulkhead`.
        """
        behind = functools.partial(self._run, function, *args, ended=ended, on_error=on_error, who=who)
        nursery.start_soon(behind, name=_name(function))

    def keep(
        self, nursery: anyio.abc.TaskGroup, function: Callable[..., Awaitable[object]], *args: Any, **who: Any
    ) -> None:
        """Start a service that lives as long as its nursery. After a failure it runs again, after a pause that grows to 30
        seconds.
        """
        nursery.start_soon(functools.partial(self._keep, function, *args, who=who), name=_name(function))

    async def serve(
        self, nursery: anyio.abc.TaskGroup, function: Callable[..., Awaitable[object]], *args: Any
    ) -> object:
        """Start a service with ``nursery.start``. An exception before it has started is raised here; a later one ends only
        the service.
        """
        return await nursery.start(functools.partial(self._serve, function, *args), name=_name(function))

    @protected
    async def _run(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        ended: str,
        on_error: Callable[[Exception], object] | None,
        who: dict[str, Any],
    ) -> None:
        # Only this function itself is outside the boundary.
        try:
            await function(*args)
        except (Exception, BaseExceptionGroup) as exc:
            _pass_interrupt_of_task(exc)
            if not Bulkhead(self, ended, on_error, who).stop(exc):
                raise

    @protected
    async def _serve(
        self, function: Callable[..., Awaitable[object]], *args: Any, task_status: anyio.abc.TaskStatus[Any]
    ) -> None:
        status = _Started(task_status)
        try:
            await function(*args, task_status=status)
        except (Exception, BaseExceptionGroup) as exc:
            _pass_interrupt_of_task(exc)
            if not status.told or not Bulkhead(self, "service", None, {}).stop(exc):
                raise

    @protected
    async def _keep(self, function: Callable[..., Awaitable[object]], *args: Any, who: dict[str, Any]) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = anyio.current_time()
            try:
                await function(*args)
                return
            except (Exception, BaseExceptionGroup) as exc:
                _pass_interrupt_of_task(exc)
                if not Bulkhead(self, "service", None, who).stop(exc):
                    raise
            if anyio.current_time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await anyio.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _is_new(self, where: tuple[str, int]) -> bool:
        if where in self._logged or len(self._logged) >= _MOST_PLACES:
            return False
        self._logged.add(where)
        return True


class _HasErrors(Protocol):
    _errors: InternalErrors


def operation(method: F) -> F:
    """Decorate a public method that runs in its caller's task, sync or async: an unexpected exception becomes a
    SnakepitError.

    The method's object must have ``_errors``, an :class:`InternalErrors`.
    """
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        @protected
        async def behind(self: _HasErrors, /, *args: Any, **options: Any) -> Any:
            old = sys.exception()
            try:
                self._errors.check_home()
                return await method(self, *args, **options)
            except SnakepitError:
                raise
            except Exception as exc:
                pass_interrupt(exc, old)
                raise self._errors.caller(exc, "operation") from exc

        return behind  # type: ignore[return-value]

    @functools.wraps(method)
    @protected
    def plain(self: _HasErrors, /, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except SnakepitError:
            raise
        except Exception as exc:
            raise self._errors.caller(exc, "operation") from exc

    return plain  # type: ignore[return-value]


def block(what: str) -> Callable[[F], F]:
    """Decorate a method that returns a context manager, as :func:`operation`; see :meth:`InternalErrors.block`.

    Args:
        what: The name of the block in the error's text.
    """

    def mark(method: F) -> F:
        plain = operation(method)

        @functools.wraps(method)
        def opened(self: _HasErrors, /, *args: Any, **options: Any) -> Any:
            return self._errors.block(plain(self, *args, **options), what)

        return opened  # type: ignore[return-value]

    return mark


class _Block(Block[T]):
    """A caller's block: unexpected exceptions on entering and leaving it become SnakepitErrors."""

    __slots__ = ("_errors", "_inner", "opener")

    def __init__(self, errors: InternalErrors, inner: AbstractAsyncContextManager[T], what: str) -> None:
        self._errors = errors
        self._inner = inner
        self.opener = what

    @protected
    async def __aenter__(self) -> T:
        try:
            self._errors.check_home()
            return await self._inner.__aenter__()
        except SnakepitError:
            raise
        except Exception as exc:
            raise self._errors.caller(exc, self.opener) from exc

    @protected
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return await self._inner.__aexit__(kind, exc, traceback)
        except SnakepitError:
            raise
        except Exception as raised:
            if raised is exc:
                raise  # The block's own exception.
            pass_interrupt(raised, exc and exc.__context__)
            raise self._errors.caller(raised, self.opener) from raised
        except BaseExceptionGroup as raised:
            # The caller is cancelled and must see the cancellation, not a failure during it.
            unexpected, rest = raised.split(Exception)
            if raised is exc or unexpected is None or rest is None:
                raise
            self._errors.report(unexpected, "request")
            raise rest from None


class _Started:
    """Records whether a task has reported that it has started."""

    def __init__(self, status: anyio.abc.TaskStatus[Any]) -> None:
        self.told = False
        self._status = status

    def started(self, value: object = None) -> None:
        self.told = True
        self._status.started(value)


class Bulkhead:
    """One boundary, used once. See :meth:`InternalErrors.bulkhead`.

    Attributes:
        failed: Whether an exception was stopped here.
    """

    __slots__ = ("_ended", "_errors", "_on_error", "_who", "failed")

    def __init__(
        self,
        errors: InternalErrors,
        ended: str,
        on_error: Callable[[Exception], object] | None,
        who: dict[str, Any],
    ) -> None:
        self.failed: bool = False
        self._errors = errors
        self._ended = ended
        self._on_error = on_error
        self._who = who

    def __enter__(self) -> Bulkhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return exc is not None and self.stop(exc)

    def stop(self, exc: BaseException) -> bool:
        """Report an exception if this boundary stops it, and return whether it does."""
        rest: BaseException | None = None
        if isinstance(exc, Exception):
            unexpected: Exception | None = exc
        elif isinstance(exc, BaseExceptionGroup):
            # A group from a nursery: a failure together with the cancellation that it, or another cause, has triggered.
            unexpected, rest = exc.split(Exception)
        else:
            return False
        if unexpected is None:
            return False
        self.failed = True
        self._errors.report(unexpected, self._ended, **self._who)
        if self._on_error is not None:
            try:
                self._on_error(unexpected)
            except Exception as failure:
                self._errors.report(failure, self._ended, **self._who)
        if rest is not None:
            raise rest
        return True


def _pass_interrupt_of_task(exc: BaseException) -> None:
    """Raise the application's interrupt if it struck a task of the library and broke its work."""
    if isinstance(exc, Exception):
        pass_interrupt(exc, None)


def _where(exc: BaseException) -> tuple[str, int]:
    """Return the innermost function of this library in an exception's traceback, and its line."""
    while isinstance(exc, BaseExceptionGroup) and exc.exceptions:
        exc = exc.exceptions[0]
    found = ("?", 0)
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        module = frame.f_globals.get("__name__", "")
        if isinstance(module, str) and module.startswith("snakepit_trio"):
            found = (f"{module}.{frame.f_code.co_qualname}", traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def _name(function: Callable[..., object]) -> str:
    """Return the name that an event loop gives to a task running this function."""
    return f"{function.__module__}.{function.__qualname__}"
