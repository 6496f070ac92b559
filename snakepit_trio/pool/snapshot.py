"""How a pool stands, in plain values, for the flight recorder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from .fleet.supervisor import Supervisor
    from .observer import RequestObserver
    from .scheduling.request import Request
    from .scheduling.scheduler import Scheduler
    from .stats import PoolStats

__all__ = ["snapshot"]

#: Of the requests that have not ended, so many are shown one by one.
_MOST = 1000


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
