"""The errors with which the scheduler ends requests."""

from __future__ import annotations

from snakepit_trio._timeouts import as_given, seconds
from snakepit_trio.errors import (
    QueueTimeout,
    RequestTimeout,
    SessionWorkerUnavailable,
    SnakepitError,
    WorkerBusy,
    WorkerCrashed,
    WorkerStartupError,
)

from .request import Phase, Request

__all__ = ["copy_error", "deadline_passed", "no_worker", "overdue", "poisonous", "worker_busy", "worker_lost"]

#: Seconds. While a worker is starting, the retry time of an error is this far ahead.
_SOON = 0.1


def copy_error(error: SnakepitError) -> SnakepitError:
    """Return a copy of an error for another caller, because a traceback belongs to one raise."""
    return error.__class__(error.message, code=error.code, details=error.details, retryable=error.retryable)


def overdue(request: Request, now: float) -> SnakepitError:
    """Return the error for the limit that a request has reached."""
    if request.phase is Phase.QUEUED and request.deadline > now:
        waited = now - request.submitted_at
        limit = request.defaults.queue_timeout
        return QueueTimeout(
            f"no worker was free for {request.tool!r} within queue_timeout={None if limit is None else as_given(limit)}",
            details={"waited": waited, "tool": request.tool, "option": "queue_timeout", "limit": limit},
            # A prefetched request may have just begun.
            retryable=request.seats is None,
        )
    return deadline_passed(request, now)


def deadline_passed(request: Request, now: float) -> RequestTimeout:
    phase = "running" if request.phase is Phase.RUNNING else "queued"
    spent = now - request.submitted_at
    option = "timeout" if request.stream is None else "stream_timeout"
    limit = request.options.decided(option, getattr(request.defaults, option))
    return RequestTimeout(
        f"{request.tool!r} was {phase} when {limit} was spent",
        details={
            "phase": phase,
            "tool": request.tool,
            "elapsed": spent,
            "option": limit.option,
            "limit": limit.seconds,
        },
    )


def no_worker(why: WorkerStartupError, next_attempt: float, now: float) -> WorkerStartupError:
    """Return the error for a request without a worker before the next start, on the event loop's clock; ``why`` is the
    reason.
    """
    wait = max(_SOON, next_attempt - now)
    return WorkerStartupError(
        f"{why.message}; the next attempt is in {seconds(wait)}",
        details={**why.details, "retry_after": wait},
        retryable=True,
    )


def worker_lost(request: Request, why: SnakepitError | None = None) -> SessionWorkerUnavailable:
    """Return the error for a strict session whose worker has ended; ``why`` is the reason, if known."""
    reason, details = (f": {why.message}", why.details) if why is not None else ("", {})
    return SessionWorkerUnavailable(
        f"the worker of session {request.session!r} is gone{reason}", details={**details, "session": request.session}
    )


def worker_busy(request: Request) -> WorkerBusy:
    return WorkerBusy(f"the worker of session {request.session!r} is busy", details={"session": request.session})


def poisonous(request: Request, error: SnakepitError) -> WorkerCrashed:
    return WorkerCrashed(
        f"{request.tool!r} has ended {request.deaths} workers and is not given to another; the last: {error.message}",
        details={**error.details, "poison": True, "deaths": request.deaths},
        retryable=False,
    )
