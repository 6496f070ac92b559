"""What a pool says of itself: frozen records, each a consistent picture of one moment."""

from __future__ import annotations

import attrs

__all__ = ["PoolStats", "WorkerInfo"]


@attrs.frozen(kw_only=True)
class PoolStats:
    """A pool at one moment.

    ``accepted == completed + failed + cancelled + timed_out + in_flight + queued`` holds in every record.

    Attributes:
        size: How many workers the pool is meant to have.
        ready: Workers that take calls, busy or not.
        busy: Workers that hold at least one call.
        cordoned: Workers that are up and get no calls, because somebody has cordoned or drained them; none of the ``ready`` ones.
        queued: Requests that wait for a worker.
        in_flight: Requests that a worker is running for a caller who waits.
        accepted: Requests taken so far.
        rejected: Requests refused so far, for a full queue, a closed pool or a busy session; not part of ``accepted``.
        completed: Requests that ended with a result.
        failed: Requests that ended with an error: the tool's, or the loss of their worker.
        cancelled: Requests whose caller went away first.
        timed_out: Requests whose ``timeout`` or ``queue_timeout`` was spent.
        restarts: Workers started in place of one that ended unbidden.
        late_replies: Replies that came after their caller had gone, and were dropped.
        cancel_set_size: Ids of cancelled requests that are remembered at the moment.
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
        id: Opaque, unique to this incarnation.
        slot: The worker's place in the pool, from 0.
        incarnation: How many workers this slot has had, this one included.
        pool: The pool's name.
        pid: The process id; None before there is one.
        address: Where the worker listens, as it said itself; ``""`` before it did.
        state: ``"starting"``, ``"ready"``, ``"busy"``, ``"cordoned"`` for one that gets no calls because somebody wants it so,
            ``"draining"`` for one that ends the calls that it has, ``"stopped"``, ``"crashed"``, ``"failed"`` for a slot that
            has used up its restarts, or ``"spare"`` for a warm one without a slot (slot -1).
        started_at: Wall-clock time of the start, in seconds since the epoch.
        requests: Calls that have come to an end in it.
        in_flight: Calls that it holds.
        rss: Resident memory in bytes, as last reported; 0 when not known yet.
        last_heartbeat: Wall-clock time of its last sign of life; None before the first.
        tainted: It has shown a fault and gets no new calls.
        device: What it is tied to, such as ``"cuda:0"``; None: nothing.
        next_attempt: When its slot starts another worker, on the event loop's clock (``anyio.current_time()``); None while
            there is no need to.
        reason: Why it is in this state, when there is something to say.
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
