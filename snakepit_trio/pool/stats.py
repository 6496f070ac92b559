"""A pool's statistics: frozen records, each consistent for one moment."""

from __future__ import annotations

import attrs

__all__ = ["PoolStats", "WorkerInfo"]


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
        state: ``"starting"``, ``"ready"``, ``"busy"``, ``"cordoned"`` for a worker that an operator has excluded from new calls,
            ``"draining"`` for a worker that only finishes its calls, ``"stopped"``, ``"crashed"``, ``"failed"`` for a slot
            that has used up its restarts, or ``"spare"`` for a warm worker without a slot (slot -1).
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
