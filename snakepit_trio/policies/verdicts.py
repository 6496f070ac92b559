"""What a failure means to the policies."""

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

#: Failures of calls that no worker has begun.
_NEVER_STARTED = (QueueFull, QueueTimeout, WorkerBusy, WorkerStartupError)


def is_remote(error: ToolError, names: Sequence[str]) -> bool:
    """Whether a tool raised one of these exceptions: ``"ValueError"``, ``"module.QualName"``, a subclass of one, or a group with
    one in it."""
    return any(kind in names or kind.removeprefix("builtins.") in names for kind in error.remote_types)


def may_retry(error: BaseException, *, idempotent: bool, on: Sequence[str]) -> bool:
    """Whether a call that failed so may be made again without doing anything twice that must not be.

    Args:
        error: How it failed.
        idempotent: It may run twice.
        on: The exceptions of the tool that are worth another try.
    """
    if isinstance(error, ToolError):
        # It ran, whatever it says.
        return idempotent and (error.retryable or is_remote(error, on))
    if isinstance(error, _NEVER_STARTED):
        return error.retryable
    return idempotent and isinstance(error, WorkerCrashed) and error.retryable


def judge(error: BaseException, ignore: Sequence[str]) -> Verdict:
    """What a call that ended so says of the tool. Who was refused, or has gone, says nothing.

    Args:
        error: How it ended.
        ignore: Exceptions of the tool that are answers like any other; of a group, all its leaves are.
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
