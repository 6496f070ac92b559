"""The catalogue of all events of the library: names, occasions and fields. docs/events.md is generated from it.

``python -m snakepit_trio.observe.catalogue`` prints the document; ``nox -s events`` compares it with the committed one,
and ``nox -s events -- --write`` updates that. The project's tests check each emitted event against the catalogue.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["CATALOGUE", "EVENT_NAME", "FINAL", "EventSpec", "check", "document"]

#: The allowed names of events, including those of tools.
EVENT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")


class EventSpec(NamedTuple):
    """One event.

    Attributes:
        name: A dotted name.
        when: The occasion.
        measurements: By name: the unit and the meaning.
        metadata: By key: the meaning.
        optional: Names and keys that may be missing.
    """

    name: str
    when: str
    measurements: Mapping[str, str]
    metadata: Mapping[str, str]
    optional: frozenset[str]


_POOL = {"pool": "the pool's name"}
_REQUEST = {
    "request_id": "the request's id, the same as the tool's `ctx.request_id`",
    **_POOL,
    "tool": "the tool's name",
    "session_id": "the caller's session",
    "worker_id": "the id of its current or last worker",
}
_WORKER = {
    "worker_id": "the worker's id, the same as in `pool.workers()`",
    **_POOL,
    "pid": "its process id, None before there is one",
    "slot": "its slot's number",
}
_SLOT = {**_POOL, "slot": "its number"}
_SESSION = {"session_id": "the session's id"}
_PROGRAM = {"program": "its name", "session_id": "the id of its session"}
_CIRCUIT = {**_POOL, "tool": "the tool, `*` for the whole pool's circuit"}
_CALL = {**_POOL, "tool": "the tool's name"}


def _event(
    name: str,
    when: str,
    measurements: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    optional: Iterable[str] = (),
) -> EventSpec:
    return EventSpec(name, when, measurements or {}, metadata or {}, frozenset(optional))


def _final(name: str, when: str, *, error: bool) -> EventSpec:
    metadata = {**_REQUEST, "error": "the error's code"} if error else _REQUEST
    duration = {"duration": "s, from its arrival to its end"}
    return _event(name, when, duration, metadata, optional=("session_id", "worker_id"))


_ALL = (
    _event("runtime.internal_error", "An unexpected exception in the library has ended one object.", {},
           {"ended": "`request`, `worker`, `connection`, `host_call`, `operation`, `service` (it runs again) or `observer`",
            "error": "the exception's class", "where": "the innermost function of the library in its traceback",
            "pool": "the pool's name", "worker_id": "the worker's id", "request_id": "the request's id"},
           optional=("pool", "worker_id", "request_id")),
    _event("request.queued", "A request begins to wait for a worker, for the first time or again.", {}, _REQUEST,
           optional=("session_id", "worker_id")),
    _event("request.dispatched", "A request is sent to a worker.", {"queue_wait": "s, since its arrival"},
           {**_REQUEST, "attempt": "1 on the first attempt"}, optional=("session_id",)),
    _final("request.completed", "A request ends with a result.", error=False),
    _final("request.failed", "A request ends with an error: the tool's, or the loss of its worker.", error=True),
    _final("request.cancelled", "A request ends because its caller has left.", error=False),
    _final("request.expired", "A request ends because its `timeout` or `queue_timeout` has passed.", error=True),
    _final("request.rejected", "A request is refused: the queue is full, the pool is closed, or its session's worker is busy.",
           error=True),
    _event("queue.saturated", "A request is refused because the queue is full, for the first time since `queue.relieved`.",
           {"queued": "requests that wait"}, _POOL),
    _event("queue.relieved", "After `queue.saturated`, at most half of the queue is used.", {"queued": "requests that wait"},
           _POOL),
    _event("worker.starting", "A worker is about to be started.", {}, _WORKER),
    _event("worker.ready", "A worker is ready for calls.", {"startup": "s, since the order to start it"}, _WORKER),
    _event("worker.draining", "A worker accepts no more calls and finishes its running ones.", {}, _WORKER),
    _event("worker.stopped", "A worker ends on request.", {}, _WORKER),
    _event("worker.crashed", "A worker ends unexpectedly.", {}, _WORKER),
    _event("worker.gone", "A worker's process has ended, and its resources are released.",
           {"uptime": "s, since the order to start it", "requests": "calls that ended in it"},
           {**_WORKER, "reason": "the reason: `exited`, `segfault`, `killed`, `heartbeat`, ...",
            "expected": "whether the end was requested"}),
    _event("worker.heartbeat_missed", "A worker has not answered within a heartbeat's interval.",
           {"silence": "s, since its last sign of life"}, _WORKER),
    _event("worker.tainted", "A worker has shown a fault and gets no more calls.", {},
           {**_WORKER, "reason": "`cancel_grace` or `unhealthy`"}),
    _event("worker.cordoned", "An operator excludes a worker from new calls.", {}, _WORKER),
    _event("worker.uncordoned", "A cordoned worker accepts calls again.", {}, _WORKER),
    _event("worker.recycled", "A worker is about to be replaced.", {},
           {**_WORKER, "reason": "`max_requests`, `max_age`, `max_rss`, `unhealthy`, `rolling_restart`, `on_demand`"}),
    _event("slot.restarted", "A slot restarts its worker after an unexpected exit.", {},
           {**_SLOT, "reason": "the reason of that exit"}),
    _event("slot.failed", "Too many starts of a slot have failed.", {"next_attempt": "s, until the next attempt"},
           {**_SLOT, "reason": "the reason of its last worker's end"}),
    _event("slot.recovered", "A failed slot has a worker again.", {}, _SLOT),
    _event("pool.opened", "A pool accepts requests.", {"size": "workers", "ready": "workers that accept calls"}, _POOL),
    _event("pool.failed", "Every slot of a pool has failed: its requests fail at once.", {},
           {**_POOL, "reason": "the reason why no worker could start"}),
    _event("pool.resized", "A pool's size was changed.", {"before": "workers", "size": "workers"},
           {**_POOL, "reason": "`resize`, or `load` for autoscaling"}),
    _event("pool.closing", "A pool accepts no more requests.", {"in_flight": "running calls", "queued": "waiting requests"},
           _POOL),
    _event("pool.closed", "All workers of a pool have ended.", {}, _POOL),
    _event("session.opened", "A session is created.", {}, _SESSION),
    _event("session.closed", "A session is closed.", {}, _SESSION),
    _event("session.expired", "A session expires.", {}, _SESSION),
    _event("program.stored", "A program is stored.", {"size": "bytes"}, _PROGRAM, optional=("session_id",)),
    _event("program.deleted", "A program is deleted on demand.", {}, _PROGRAM, optional=("session_id",)),
    _event("bridge.opened", "The bridge accepts clients.", {}, {"address": "its address"}),
    _event("bridge.closing", "The bridge accepts no more clients.", {}, {}),
    _event("bridge.client_joined", "A client has sent the token.", {"connections": "connected clients"}, {}),
    _event("bridge.client_left", "A client has disconnected.",
           {"duration": "s, since it connected", "connections": "remaining clients"},
           {"known": "whether it had sent the token"}),
    _event("bridge.client_refused", "A client is refused because `max_connections` is reached.",
           {"connections": "connected clients"}, {}),
    _event("circuit.opened", "A circuit opens: calls are refused.",
           {"failures": "failed calls in the window", "calls": "calls in the window"}, _CIRCUIT),
    _event("circuit.half_open", "A circuit lets a probe through.", {}, _CIRCUIT),
    _event("circuit.closed", "A circuit closes: its probes have succeeded.", {}, _CIRCUIT),
    _event("policy.retried", "A call has failed and is retried after a pause.",
           {"attempt": "the number of the attempt that failed", "pause": "s"}, {**_CALL, "error": "the error's code"}),
    _event("policy.hedged", "A call is slow and is sent a second time.", {}, _CALL),
    _event("policy.limited", "A call is beyond a limit: it waits, or is refused.", {},
           {**_CALL, "limit": "`rate` or `concurrency`", "refused": "whether it was refused"}),
    _event("bridge.client_expelled", "A client was disconnected for behaviour that no honest client shows.",
           {}, {"reason": "that behaviour"}),
    _event("recorder.dumped", "The flight recorder has written a dump.", {},
           {"reason": "`crash`, `signal` or `demand`", "path": "the file"}),
)  # fmt: skip

#: The events by name.
CATALOGUE: Mapping[str, EventSpec] = {spec.name: spec for spec in _ALL}
#: Each request emits exactly one of these.
FINAL = frozenset({"request.completed", "request.failed", "request.cancelled", "request.expired", "request.rejected"})


def check(name: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
    """Check an emitted event against the catalogue.

    Raises:
        ValueError: The event is not in the catalogue, or has other fields.
    """
    spec = CATALOGUE.get(name)
    if spec is None:
        raise ValueError(f"{name}: no such event in the catalogue")
    for what, given, known in (
        ("measurements", measurements, spec.measurements),
        ("metadata", metadata, spec.metadata),
    ):
        missing = known.keys() - given.keys() - spec.optional
        if missing or given.keys() - known.keys():
            raise ValueError(f"{name}: {what} are {sorted(given)}, by the catalogue {sorted(known)}")
    for key, value in measurements.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"{name}: {key} is {value!r}, no number")


def document() -> str:
    """Return the catalogue as Markdown."""
    lines = [
        "# Events",
        "",
        "<!-- Made from snakepit_trio/observe/catalogue.py by `nox -s events -- --write`. -->",
        "",
        '`runtime.events.subscribe("worker.", "request.")` yields an async iterator over events whose names begin with a prefix;',
        "without a prefix, over all. Times are in seconds (s), sizes in bytes. Each request ends with exactly one of",
        f"{', '.join(f'`{name}`' for name in sorted(FINAL))}.",
        "Events of tools (`ctx.emit`) have the names that the tools choose, with `worker_id`, `pool`, `pid`,",
        "`slot` and `request_id` beside their own metadata; the names of this catalogue are reserved.",
        "[Observability](observability.md) says more.",
    ]
    group = ""
    for spec in CATALOGUE.values():
        if spec.name.split(".")[0] != group:
            group = spec.name.split(".")[0]
            lines += ["", f"## {group}"]
        lines += ["", f"### `{spec.name}`", "", spec.when, ""]
        for title, fields in (("Measurements", spec.measurements), ("Metadata", spec.metadata)):
            if fields:
                lines += [f"{title}:", ""]
                lines += [
                    f"- `{key}`: {text}{' (if there is one)' if key in spec.optional else ''}"
                    for key, text in fields.items()
                ]
                lines += [""]
        lines.pop()
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
