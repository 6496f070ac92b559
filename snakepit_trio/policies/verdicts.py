"""The meaning of errors for the policies."""

from __future__ import annotations

from collections.abc import Sequence

from snakepit_trio.errors import (
    CircuitOpen,
    InvalidParameter,
    QueueFull,
    QueueTimeout,
    RequestTimeout,
    ToolError,
    WorkerBusy,
    WorkerCrashed,
    WorkerStartupError,
)

from .circuit import Verdict

__all__ = ["is_remote", "judge", "may_retry"]

#: Errors of calls that no worker has begun.
_NEVER_STARTED = (QueueFull, QueueTimeout, WorkerBusy, WorkerStartupError)


def is_remote(error: ToolError, names: Sequence[str]) -> bool:
    """Return whether the tool raised one of these exceptions, by ``"ValueError"`` or ``"module.QualName"``, a subclass, or
    a group with one.
    """
    return any(kind in names or kind.removeprefix("builtins.") in names for kind in error.remote_types)


def may_retry(error: BaseException, *, idempotent: bool, on: Sequence[str]) -> bool:
    """Return whether a failed call may be made again without repeating an effect that must not be repeated.

    Args:
        error: The error of the call.
        idempotent: Whether the call may run twice.
        on: The exceptions of the tool for which a retry makes sense.
    """
    if isinstance(error, ToolError):
        # A ToolError means that the call ran, whatever its code is.
        return idempotent and (error.retryable or is_remote(error, on))
    if isinstance(error, _NEVER_STARTED):
        return error.retryable
    return idempotent and isinstance(error, WorkerCrashed) and error.retryable


def judge(error: BaseException, ignore: Sequence[str]) -> Verdict:
    """Return the outcome of a call for its circuit. A refused or cancelled call is neither a failure nor a success.

    Args:
        error: The error of the call.
        ignore: Exceptions of the tool that do not count as failures; a group is ignored if all its leaves are.
    """
    if isinstance(error, ToolError):
        if all(is_remote(leaf, ignore) for leaf in error.leaves or (error,)):
            return Verdict.SUCCESS
        return Verdict.NONE if isinstance(error, InvalidParameter) else Verdict.FAILURE
    if isinstance(error, RequestTimeout):
        return Verdict.FAILURE if error.details.get("phase") == "running" else Verdict.NONE
    if isinstance(error, CircuitOpen):
        return Verdict.NONE
    return Verdict.FAILURE if isinstance(error, WorkerCrashed | WorkerStartupError) else Verdict.NONE
