"""Every failure that the library raises.

One tree, rooted at :class:`SnakepitError`. A class stands for one thing that went wrong; ``code`` is its stable name on
the wire, ``details`` holds what a program may want to act on, and ``retryable`` says whether the same request may
succeed if it is sent again. The mapping to gRPC status codes follows
https://grpc.io/docs/guides/status-codes/ and is kept in :data:`GRPC_STATUS`.
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
    "remote",
]


class SnakepitError(Exception):
    """The root of every failure of this library.

    Attributes:
        message: One sentence for people.
        code: The failure's stable name, the same in every language.
        details: Plain values that say more; which keys there are depends on the class.
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
    """An argument was refused before anything was done with it.

    ``details["path"]`` names the place inside the parameters, such as ``params["rows"][3]``.
    """

    default_code = "invalid_parameter"


class InvalidPayload(SnakepitError):
    """What arrived, or what a tool returned, could not be turned into a value or back into bytes."""

    default_code = "invalid_payload"


class ToolNotFound(SnakepitError, LookupError):
    """No tool has this name. ``details["tool"]`` is the name."""

    default_code = "tool_not_found"


class ToolExists(SnakepitError):
    """A tool of this name is registered already and may not be replaced. ``details["tool"]`` is the name."""

    default_code = "tool_exists"


class RemoteTraceback(Exception):
    """Where in a worker an exception was raised; the ``__cause__`` of a :class:`ToolError` and of a :class:`WorkerStartupError`.

    It is there to be printed: ``traceback.print_exception``, a log record's ``exc_info``, pytest and an uncaught error show the
    worker's frames above the host's. Programs read ``ToolError.remote_traceback``.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0].rstrip()}\n"""'


class ToolError(SnakepitError):
    """A tool raised. The worker is well and goes on serving.

    When a tool raises one of the library's own errors, the caller gets an error of both classes: ``except
    sp.InvalidParameter`` catches it, and ``except sp.ToolError`` does. What the library itself says of a request, such as that
    its queue was full or its worker crashed, is never a ToolError, so no tool can say it in the library's place.

    Attributes:
        remote_type: The exception's class: its bare name for a built-in one, else ``module.QualName``.
        remote_message: What ``str()`` of the exception gave in the worker, redacted; of a group, with what its leaves say.
        remote_traceback: The worker's formatted traceback, redacted; where there is one, it is also the error's ``__cause__``,
            a :class:`RemoteTraceback`.
        remote_types: ``module.QualName`` of the exception's class and of its bases, nearest first; of a group, followed by
            those of its leaves.
        leaves: When the tool raised a group of exceptions: the first of its leaves, each as an error of its own.
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
        # The class was made for the exception's own bases, so it is made anew and not looked up by name.
        return _rebuild_tool_error, (self.code, self.remote_types, self.args, self.__dict__.copy())


def _rebuild_tool_error(
    code: str, names: tuple[str, ...], args: tuple[Any, ...], state: dict[str, Any]
) -> SnakepitError:
    error = _rebuild(_tool_error_class(class_for_code(code).default_code, names), args, state)
    _show(error, state.get("remote_traceback"))
    return error


def _show(error: SnakepitError, remote_traceback: object) -> None:
    """Have whatever prints an error print the worker's frames, too."""
    text = exact_text(remote_traceback)
    if text:
        error.__cause__ = RemoteTraceback(text)


class PoolNotFound(SnakepitError, LookupError):
    """The runtime has no pool of this name. ``details["pool"]`` is the name."""

    default_code = "pool_not_found"


class QueueFull(SnakepitError):
    """The pool's queue held ``max_queue`` requests already; this one was refused at once."""

    default_code = "queue_full"
    default_retryable = True


class QueueTimeout(SnakepitError, TimeoutError):
    """The request waited ``queue_timeout`` seconds for a worker and was never started."""

    default_code = "queue_timeout"
    default_retryable = True


class RequestTimeout(SnakepitError, TimeoutError):
    """The request's ``timeout`` was spent. ``details["phase"]`` is ``"queued"`` or ``"running"``."""

    default_code = "request_timeout"


class RequestCancelled(SnakepitError):
    """The request was cancelled by somebody other than the scope that made it."""

    default_code = "request_cancelled"


class WorkerCrashed(SnakepitError):
    """The worker that ran the request ended before it answered.

    ``details`` holds ``worker_id``, ``reason`` (how it ended), ``exit_code`` or ``signal`` where known, ``stderr`` (the
    last lines), and ``poison=True`` when the request is refused because it has killed ``poison_limit`` workers.
    """

    default_code = "worker_crashed"
    default_retryable = True


class WorkerBusy(SnakepitError):
    """The session's worker was busy and the affinity is ``strict_fail_fast``."""

    default_code = "worker_busy"
    default_retryable = True


class WorkerStartupError(SnakepitError):
    """No worker of the pool could be started. ``details`` holds ``pool`` and ``reason``.

    What the adapter raised meanwhile is shown as the error's ``__cause__``, a :class:`RemoteTraceback`.

    From a pool that is open it is retryable: ``details["retry_after"]`` is the time in seconds until the next worker is
    started, and ``details["option"]`` the option of the pool that decides when that is. Workers that calls have ended
    don't count.
    """

    default_code = "worker_startup"

    def __init__(self, message: str = "", **options: Any) -> None:
        super().__init__(message, **options)
        _show(self, self.details.get("remote_traceback"))


class SessionNotFound(SnakepitError, LookupError):
    """The session does not exist, has expired, or was closed."""

    default_code = "session_not_found"


class SessionWorkerUnavailable(SnakepitError):
    """The worker that a strict session is bound to is gone."""

    default_code = "session_worker_unavailable"


class QuotaExceeded(SnakepitError):
    """A store's limit would be passed; nothing was changed. ``details``: ``quota``, ``limit``, ``used``, ``asked``."""

    default_code = "quota_exceeded"


class StreamingUnsupported(SnakepitError):
    """A tool that gives one result was asked for a stream, or the other way round."""

    default_code = "streaming_unsupported"


class CircuitOpen(SnakepitError):
    """The tool has failed so often of late that it is not called for a while."""

    default_code = "circuit_open"
    default_retryable = True


class PoolClosed(SnakepitError):
    """The pool is closing or closed; the request was not, or will not be, finished."""

    default_code = "pool_closed"


class WouldDeadlock(SnakepitError):
    """A call that would wait on capacity which its own caller holds."""

    default_code = "would_deadlock"


class ConfigError(SnakepitError, ValueError):
    """A configuration was refused. ``details`` holds ``source`` (file or variable), ``key`` and ``expected``."""

    default_code = "config_error"


class AuthenticationFailed(SnakepitError):
    """The token was missing or wrong."""

    default_code = "authentication_failed"


class ConnectionLost(SnakepitError, ConnectionError):
    """A client has no connection to its runtime: it can't be reached, or went away before it answered.

    In the latter case nobody knows whether the call has run.
    """

    default_code = "connection_lost"
    default_retryable = True


class ProtocolMismatch(SnakepitError):
    """The two sides speak no common version of the protocol. ``details``: ``ours``, ``theirs``."""

    default_code = "protocol_mismatch"


class IncompatibleDependency(SnakepitError):
    """A release of a dependency, or of Python, lacks what is used of it. ``details``: ``dependency``, ``version``, ``missing``.

    Raised when a module is imported; to use another release of either is the only remedy.
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
    "config_error": 3,
    "authentication_failed": 16,
    "connection_lost": 14,
    # Of the bridge's program store; the exception is SnakepitError.
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
        ConfigError,
        AuthenticationFailed,
        ConnectionLost,
        ProtocolMismatch,
        IncompatibleDependency,
    ]
}


def class_for_code(code: str) -> type[SnakepitError]:
    """The class whose stable name is ``code``; :class:`SnakepitError` itself for a name that is not known here."""
    return _BY_CODE.get(code, SnakepitError)


# ---- catching a remote exception by its type -----------------------------------------------------
#
# ``except`` looks at real base classes only, so an error must be born with the class that the clause will name. Each
# remote class name has one class here, made on first use by whichever side comes first: the raising one or the clause.

_by_name: weakref.WeakValueDictionary[str, type[ToolError]] = weakref.WeakValueDictionary()


def remote(exception: type[BaseException] | str) -> type[ToolError]:
    """The class to catch a :class:`ToolError` by the type of the exception that the tool raised.

    ``except sp.remote(ValueError)`` catches what a tool raised as ValueError or as a subclass of it, and a group of exceptions
    with one in it. A class that exists in the worker only is named by its ``module.QualName``.

    Raises:
        TypeError: It is neither an exception class nor text.
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
    """The class of an error that a tool raised as one of these, and, by its code, as one of the library's."""
    own = class_for_code(code)
    bases: tuple[type[SnakepitError], ...] = tuple(remote(name) for name in dict.fromkeys(names)) or (ToolError,)
    shown = "ToolError"
    if own not in (SnakepitError, ToolError):
        bases, shown = (own, *bases), own.__name__
    return type(shown, bases, {"__module__": __name__, "__qualname__": shown})


#: So many classes are told of one remote exception; of a group, of all its leaves together.
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
    """A :class:`ToolError` that ``except sp.remote(T)`` catches for every ``T`` named in ``remote_types``.

    Args:
        remote_types, remote_message, remote_traceback, details, retryable, leaves: Its attributes.
        code: Of the library's own error that the tool raised.
        message: What that said.
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
