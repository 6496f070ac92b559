"""A pool's statistics: frozen records, each consistent for one moment; and its state in plain values, for a dump."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from .fleet.supervisor import Supervisor
    from .observer import RequestObserver
    from .scheduling.request import Request
    from .scheduling.scheduler import Scheduler

__all__ = ["PoolStats", "WorkerInfo", "snapshot"]

#: Of the requests that have not ended, so many are shown one by one.
_MOST = 1000


@attrs.frozen(kw_only=True)
class PoolStats:
    """A pool at one moment.

    ``accepted == completed + failed + cancelled + timed_out + in_flight + queued`` holds in every record.

    Attributes:
        size: The wanted number of workers.
        ready: Workers that accept calls, busy or not.
        busy: Workers that hold at least one call.
        cordoned: Workers that are up and get no calls, because somebody has cordoned or drained them; none of the ``ready`` ones.
        queued: Requests that wait for a worker.
        in_flight: Requests that a worker is running for a waiting caller.
        accepted: Requests accepted so far.
        rejected: Requests refused so far, because of a full queue, a closed pool or a busy session; not part of
            ``accepted``.
        completed: Requests that ended with a result.
        failed: Requests that ended with an error: the tool's, or the loss of their worker.
        cancelled: Requests whose caller left first.
        timed_out: Requests whose ``timeout`` or ``queue_timeout`` passed.
        restarts: Workers restarted after an unexpected exit.
        late_replies: Replies that arrived after their caller had left, and were dropped.
        cancel_set_size: Remembered ids of cancelled requests.
    """

    size: int
    ready: int
    busy: int
    cordoned: int
    queued: int
    in_flight: int
    accepted: int
    rejected: int
    completed: int
    failed: int
    cancelled: int
    timed_out: int
    restarts: int
    late_replies: int
    cancel_set_size: int


@attrs.frozen(kw_only=True)
class WorkerInfo:
    """A worker at one moment.

    Attributes:
        id: An opaque id, unique to this incarnation.
        slot: The worker's place in the pool, from 0.
        incarnation: The number of workers that this slot has had, including this one.
        pool: The pool's name.
        pid: The process id; None before there is one.
        address: The address on which the worker listens, as reported by itself; ``""`` before that.
        state: ``"starting"``, ``"ready"``, ``"busy"``, ``"cordoned"`` for a worker that an operator has excluded from new
            calls, ``"draining"`` for a worker that only finishes its calls, ``"stopped"``, ``"crashed"``, ``"failed"``
            for a slot that has used up its restarts, or ``"spare"`` for a warm worker without a slot (slot -1).
        started_at: Wall-clock time of the start, in seconds since the epoch.
        requests: Calls that have ended in it.
        in_flight: Calls that it holds.
        rss: Resident memory in bytes, as last reported; 0 if unknown.
        last_heartbeat: Wall-clock time of its last sign of life; None before the first.
        tainted: Whether it has shown a fault and gets no new calls.
        device: The assigned device, such as ``"cuda:0"``; None: none.
        next_attempt: When its slot starts another worker, on the event loop's clock (``anyio.current_time()``); None if
            no start is due.
        reason: The reason for its state, if there is one to give.
    """

    id: str
    slot: int
    incarnation: int
    pool: str
    pid: int | None
    address: str
    state: str
    started_at: float
    requests: int
    in_flight: int
    rss: int
    last_heartbeat: float | None
    tainted: bool
    device: str | None = None
    next_attempt: float | None = None
    reason: str = ""


def snapshot(
    stats: PoolStats, supervisor: Supervisor, scheduler: Scheduler, watch: RequestObserver, now: float
) -> dict[str, Any]:
    """A pool's counters, workers, slots, requests, and the requests that ended last.

    Args:
        now: The event loop's time, in seconds.
    """
    requests: list[dict[str, Any]] = []
    for request in scheduler.ledger.requests():
        if len(requests) == _MOST:
            break
        requests.append(_request(request, supervisor.dispatch.request_prefix, now))
    return {
        "stats": attrs.asdict(stats),
        "workers": [attrs.asdict(info) for info in supervisor.infos()],
        "slots": [
            {
                "index": slot.index,
                "incarnation": slot.incarnation,
                "worker_id": None if slot.current is None else slot.current.id,
                "failed": slot.failed,
                "reason": slot.reason,
                "next_attempt_in": None if slot.next_attempt is None else slot.next_attempt - now,
            }
            for slot in supervisor.slots
        ],
        "requests": requests,
        "ended": [
            {
                "outcome": end.outcome,
                "request_id": end.request_id,
                "tool": end.tool,
                "session_id": end.session_id,
                "worker_id": end.worker_id,
                "attempt": end.attempt,
                "error": end.error,
                "ago": now - end.ended_at,
                "duration": end.ended_at - end.submitted_at,
                "queue_wait": end.dispatched_at - end.submitted_at,
            }
            for end in watch.ended()
        ],
    }


def _request(request: Request, prefix: str, now: float) -> dict[str, Any]:
    return {
        "request_id": f"{prefix}{request.id}",
        "tool": request.tool,
        "phase": request.phase.value,
        "age": now - request.submitted_at,
        "running_for": now - request.dispatched_at,
        "time_left": request.deadline - now,
        "priority": request.priority,
        "attempt": request.attempt,
        "worker_id": request.worker_id,
        "session_id": request.session,
        "stream": request.stream,
    }
