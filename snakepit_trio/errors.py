"""Every error that the library raises.

All errors derive from :class:`SnakepitError`. Each class stands for one kind of failure: ``code`` is its stable name on
the wire, ``details`` holds values that a program may act on, and ``retryable`` says whether the same request may succeed
when it is sent again. The mapping to gRPC status codes follows https://grpc.io/docs/guides/status-codes/ and is kept in
:data:`GRPC_STATUS`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

from ._exceptions import display_name, exact_text, qualified_name, sound_name

__all__ = [
    "AuthenticationFailed",
    "CircuitOpen",
    "ConfigError",
    "ConnectionLost",
    "IncompatibleDependency",
    "InvalidParameter",
    "InvalidPayload",
    "PoolClosed",
    "PoolNotFound",
    "ProtocolMismatch",
    "QueueFull",
    "QueueTimeout",
    "QuotaExceeded",
    "RequestCancelled",
    "RequestTimeout",
    "SessionNotFound",
    "SessionWorkerUnavailable",
    "SnakepitError",
    "StreamingUnsupported",
    "ToolError",
    "ToolExists",
    "ToolNotFound",
    "WorkerBusy",
    "WorkerCrashed",
    "WorkerStartupError",
    "WouldDeadlock",
    "WrongContext",
    "remote",
]


class SnakepitError(Exception):
    """The base class of every error of this library.

    Attributes:
        message: One sentence for people.
        code: The error's stable name, the same in every language.
        details: Plain values; the keys depend on the class.
        retryable: Whether the same request may succeed when it is sent again.
    """

    default_code: ClassVar[str] = "internal"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code: str = self.default_code if code is None else code
        self.details: dict[str, Any] = dict(details or {})
        self.retryable: bool = self.default_retryable if retryable is None else retryable

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(cls: type[SnakepitError], args: tuple[Any, ...], state: dict[str, Any]) -> SnakepitError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidParameter(SnakepitError, ValueError):
    """An argument was refused before the call began.

    ``details["path"]`` is the argument's place inside the parameters, such as ``params["rows"][3]``.
    """

    default_code = "invalid_parameter"


class InvalidPayload(SnakepitError):
    """A payload could not be decoded, or a tool's result could not be encoded."""

    default_code = "invalid_payload"


class ToolNotFound(SnakepitError, LookupError):
    """There is no tool of this name. ``details["tool"]`` is the name."""

    default_code = "tool_not_found"


class ToolExists(SnakepitError):
    """A tool of this name is already registered and may not be replaced. ``details["tool"]`` is the name."""

    default_code = "tool_exists"


class RemoteTraceback(Exception):
    """A worker's traceback, as the ``__cause__`` of a :class:`ToolError` or :class:`WorkerStartupError`.

    Its purpose is to be printed: ``traceback.print_exception``, a log record's ``exc_info``, pytest and the interpreter's report
    of an uncaught error show the worker's frames above the host's. Programs read ``ToolError.remote_traceback`` instead.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0].rstrip()}\n"""'


class ToolError(SnakepitError):
    """A tool raised an exception. The worker is unharmed and continues to serve.

    If a tool raises one of the library's own errors, the caller's error has both classes: ``except sp.InvalidParameter`` and
    ``except sp.ToolError`` both catch it. An error that the library itself raises about a request (a full queue, a crashed
    worker) is never a ToolError, so a tool cannot imitate it.

    Attributes:
        remote_type: The exception's class: the bare name of a built-in class, else ``module.QualName``.
        remote_message: ``str()`` of the exception in the worker, redacted; for a group, with the messages of its leaves.
        remote_traceback: The worker's formatted traceback, redacted. If it is not empty, the error's ``__cause__`` is a
            :class:`RemoteTraceback` with the same text.
        remote_types: ``module.QualName`` of the exception's class and its bases, nearest first; for a group, followed by
            those of its leaves.
        leaves: For a group of exceptions: the first leaves, each as a ToolError.
    """

    default_code = "tool_error"

    def __init__(
        self,
        message: str = "",
        *,
        remote_type: str = "",
        remote_message: str = "",
        remote_traceback: str = "",
        remote_types: tuple[str, ...] = (),
        leaves: tuple[ToolError, ...] = (),
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, details=details, retryable=retryable)
        self.remote_types = remote_types
        self.leaves = leaves
        self.remote_type = remote_type
        self.remote_message = remote_message
        self.remote_traceback = remote_traceback
        _show(self, remote_traceback)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class was created for the remote exception's bases, so pickle cannot find it by name.
        return _rebuild_tool_error, (self.code, self.remote_types, self.args, self.__dict__.copy())


def _rebuild_tool_error(
    code: str, names: tuple[str, ...], args: tuple[Any, ...], state: dict[str, Any]
) -> SnakepitError:
    error = _rebuild(_tool_error_class(class_for_code(code).default_code, names), args, state)
    _show(error, state.get("remote_traceback"))
    return error


def _show(error: SnakepitError, remote_traceback: object) -> None:
    """Make tracebacks of this error show the worker's frames too."""
    text = exact_text(remote_traceback)
    if text:
        error.__cause__ = RemoteTraceback(text)


class PoolNotFound(SnakepitError, LookupError):
    """The runtime has no pool of this name. ``details["pool"]`` is the name."""

    default_code = "pool_not_found"


class QueueFull(SnakepitError):
    """The request was refused at once because the pool's queue already held ``max_queue`` requests."""

    default_code = "queue_full"
    default_retryable = True


class QueueTimeout(SnakepitError, TimeoutError):
    """The request waited for a worker for ``queue_timeout`` seconds and did not begin."""

    default_code = "queue_timeout"
    default_retryable = True


class RequestTimeout(SnakepitError, TimeoutError):
    """The request's ``timeout`` passed. ``details["phase"]`` is ``"queued"`` or ``"running"``."""

    default_code = "request_timeout"


class RequestCancelled(SnakepitError):
    """The request was cancelled from outside its caller's scope: its session was closed, or its worker cancelled it."""

    default_code = "request_cancelled"


class WorkerCrashed(SnakepitError):
    """The worker ended before it answered the request.

    ``details`` holds ``worker_id``, ``reason`` (how the worker ended), ``exit_code`` or ``signal`` if known, ``stderr`` (its
    last lines), and ``poison=True`` if the request is refused because it has ended ``poison_limit`` workers.
    """

    default_code = "worker_crashed"
    default_retryable = True


class WorkerBusy(SnakepitError):
    """The session's worker was busy, and the session's affinity is ``strict_fail_fast``."""

    default_code = "worker_busy"
    default_retryable = True


class WorkerStartupError(SnakepitError):
    """No worker of the pool could start. ``details`` holds ``pool`` and ``reason``.

    If the adapter raised an exception, the error's ``__cause__`` is a :class:`RemoteTraceback` that shows it.

    The error is retryable if the pool is open: ``details["retry_after"]`` is the time in seconds until the next attempt to
    start a worker, and ``details["option"]`` names the pool option that determines that time. A worker that a call has ended
    does not count as a failed start.
    """

    default_code = "worker_startup"

    def __init__(self, message: str = "", **options: Any) -> None:
        super().__init__(message, **options)
        _show(self, self.details.get("remote_traceback"))


class SessionNotFound(SnakepitError, LookupError):
    """The session does not exist, has expired, or was closed."""

    default_code = "session_not_found"


class SessionWorkerUnavailable(SnakepitError):
    """The worker to which a strict session is bound has ended."""

    default_code = "session_worker_unavailable"


class QuotaExceeded(SnakepitError):
    """The operation would exceed a quota; nothing was changed. ``details``: ``quota``, ``limit``, ``used``, ``asked``."""

    default_code = "quota_exceeded"


class StreamingUnsupported(SnakepitError):
    """A stream was requested from a tool that returns one result, or one result from a streaming tool."""

    default_code = "streaming_unsupported"


class CircuitOpen(SnakepitError):
    """The circuit breaker of the tool is open after recent failures, so the call was refused."""

    default_code = "circuit_open"
    default_retryable = True


class PoolClosed(SnakepitError):
    """The pool is closing or closed, so the request was not completed."""

    default_code = "pool_closed"


class WouldDeadlock(SnakepitError):
    """The call could only wait for capacity that its own callers hold."""

    default_code = "would_deadlock"


class WrongContext(SnakepitError, RuntimeError):
    """A pool, runtime or client was used outside of the event loop that opened it, or its block was left in another task."""

    default_code = "wrong_context"


class ConfigError(SnakepitError, ValueError):
    """A configuration is invalid. ``details`` holds ``source`` (file or variable), ``key`` and ``expected``."""

    default_code = "config_error"


class AuthenticationFailed(SnakepitError):
    """The token is missing or wrong."""

    default_code = "authentication_failed"


class ConnectionLost(SnakepitError, ConnectionError):
    """The client could not reach its runtime, or lost the connection before the answer arrived.

    After a lost connection it is unknown whether the call ran.
    """

    default_code = "connection_lost"
    default_retryable = True


class ProtocolMismatch(SnakepitError):
    """The two sides have no protocol version in common. ``details``: ``ours``, ``theirs``."""

    default_code = "protocol_mismatch"


class IncompatibleDependency(SnakepitError):
    """The installed release of a dependency, or of Python, lacks a name that the library uses.

    The error is raised when a module is imported; install another release of the dependency. ``details``: ``dependency``,
    ``version``, ``missing``.
    """

    default_code = "incompatible_dependency"


#: gRPC status code by error code (the numbers of ``google.rpc.Code``).
GRPC_STATUS: Mapping[str, int] = {
    "internal": 13,
    "invalid_parameter": 3,
    "invalid_payload": 3,
    "tool_not_found": 5,
    "tool_exists": 6,
    "tool_error": 2,
    "pool_not_found": 5,
    "queue_full": 8,
    "queue_timeout": 14,
    "request_timeout": 4,
    "request_cancelled": 1,
    "worker_crashed": 14,
    "worker_busy": 14,
    "worker_startup": 14,
    "session_not_found": 5,
    "session_worker_unavailable": 9,
    "quota_exceeded": 8,
    "streaming_unsupported": 12,
    "circuit_open": 14,
    "pool_closed": 14,
    "would_deadlock": 9,
    "wrong_context": 9,
    "config_error": 3,
    "authentication_failed": 16,
    "connection_lost": 14,
    # Used by the bridge's program store; the exception's class is SnakepitError.
    "program_not_found": 5,
    "protocol_mismatch": 9,
    "incompatible_dependency": 13,
}

_BY_CODE: Mapping[str, type[SnakepitError]] = {
    cls.default_code: cls
    for cls in [
        SnakepitError,
        InvalidParameter,
        InvalidPayload,
        ToolNotFound,
        ToolExists,
        ToolError,
        PoolNotFound,
        QueueFull,
        QueueTimeout,
        RequestTimeout,
        RequestCancelled,
        WorkerCrashed,
        WorkerBusy,
        WorkerStartupError,
        SessionNotFound,
        SessionWorkerUnavailable,
        QuotaExceeded,
        StreamingUnsupported,
        CircuitOpen,
        PoolClosed,
        WouldDeadlock,
        WrongContext,
        ConfigError,
        AuthenticationFailed,
        ConnectionLost,
        ProtocolMismatch,
        IncompatibleDependency,
    ]
}


def class_for_code(code: str) -> type[SnakepitError]:
    """Return the error class of a code, or :class:`SnakepitError` for an unknown code."""
    return _BY_CODE.get(code, SnakepitError)


# ---- catching a remote exception by its type -----------------------------------------------------
#
# ``except`` compares real base classes only, so an error must be created with the class that the clause names. Each remote
# class name has one class here. It is created on first use, either by the error or by the ``except`` clause.

_by_name: weakref.WeakValueDictionary[str, type[ToolError]] = weakref.WeakValueDictionary()


def remote(exception: type[BaseException] | str) -> type[ToolError]:
    """Return a class that catches a :class:`ToolError` by the type of the exception that the tool raised.

    ``except sp.remote(ValueError)`` catches the error if the tool raised ValueError, a subclass of ValueError, or an
    exception group that contains one. Name a class that exists only in the worker by its ``module.QualName``.

    Raises:
        TypeError: The argument is neither an exception class nor a string.
    """
    given = exact_text(exception)
    if given is not None:
        name = sound_name(given)
    elif issubclass(type(exception), type) and issubclass(exception, BaseException):  # type: ignore[arg-type]
        name = qualified_name(exception)  # type: ignore[arg-type]
    else:
        raise TypeError(f"remote() takes a class of exceptions or the name of one, not {exception!r}")
    cls = _by_name.get(name)
    if cls is None:
        cls = type(f"remote({display_name(name)})", (ToolError,), {"__module__": __name__})
        _by_name[name] = cls
    return cls


@functools.lru_cache(maxsize=256)
def _tool_error_class(code: str, names: tuple[str, ...]) -> type[ToolError]:
    """Return the class of a tool's error: derived from the remote classes ``names`` and from the library's class for ``code``."""
    own = class_for_code(code)
    bases: tuple[type[SnakepitError], ...] = tuple(remote(name) for name in dict.fromkeys(names)) or (ToolError,)
    shown = "ToolError"
    if own not in (SnakepitError, ToolError):
        bases, shown = (own, *bases), own.__name__
    return type(shown, bases, {"__module__": __name__, "__qualname__": shown})


#: The largest number of class names transmitted for one remote exception; for a group, for all its leaves together.
MAX_REMOTE_TYPES = 32


def tool_error(
    remote_types: tuple[str, ...],
    remote_message: str,
    remote_traceback: str,
    *,
    code: str = ToolError.default_code,
    message: str = "",
    details: Mapping[str, Any] | None = None,
    retryable: bool = False,
    leaves: tuple[ToolError, ...] = (),
) -> ToolError:
    """Create a :class:`ToolError` that ``except sp.remote(T)`` catches for every ``T`` named in ``remote_types``.

    Args:
        remote_types, remote_message, remote_traceback, details, retryable, leaves: The error's attributes.
        code: The code of the library's own error, if the tool raised one.
        message: The message of that error.
    """
    names = remote_types[:MAX_REMOTE_TYPES]
    shown = display_name(names[0]) if names else "Exception"
    if not message:
        message = f"{shown}: {remote_message}" if remote_message else shown
    return _tool_error_class(class_for_code(code).default_code, names)(
        message,
        remote_type=shown,
        remote_message=remote_message,
        remote_traceback=remote_traceback,
        remote_types=names,
        leaves=leaves,
        code=code,
        details=details,
        retryable=retryable,
    )
