"""What a runtime tells Prometheus and OpenTelemetry of its pools, number by number."""

from __future__ import annotations

import gc
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

import snakepit_trio as sp
from snakepit_trio.observe.timings import BUCKETS, RequestTimings

prometheus = pytest.importorskip("snakepit_trio.observe.prometheus")
trace = pytest.importorskip("opentelemetry.trace")
from snakepit_trio.observe.tracing import Telemetry  # noqa: E402


class Pool:
    """A pool whose figures are all different."""

    name = "p"

    def stats(self) -> Any:
        return SimpleNamespace(
            size=2, queued=3, in_flight=4, cancel_set_size=5, accepted=6, completed=7, failed=8, cancelled=9, timed_out=10,
            rejected=11, restarts=12, late_replies=13,
        )  # fmt: skip

    def workers(self) -> Any:
        return [SimpleNamespace(state=state, rss=rss) for state, rss in (("ready", 100), ("busy", 20), ("busy", 3))]

    def circuits(self) -> Any:
        return {"a": "open", "b": "half_open", "c": "closed"}


def test_each_figure_of_a_pool() -> None:
    timings = RequestTimings(10)
    timings.ended("p", "t", "completed", 0.0005, 0.002)
    timings.ended("p", "t", "completed", math.nan, 1000.0)
    collector = prometheus.RuntimeCollector("1.2", lambda: [Pool()], timings, {"call": 2})
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in collector.collect()
        for sample in family.samples
    }
    pool = ("pool", "p")
    figures = {
        "pool_size": 2, "workers_memory_bytes": 123, "queue_length": 3, "requests_in_flight": 4, "cancel_set_size": 5,
        "requests_accepted_total": 6, "worker_restarts_total": 12, "late_replies_total": 13,
    }  # fmt: skip
    assert {name: found[f"snakepit_{name}", pool] for name in figures} == figures
    outcomes = {"completed": 7, "failed": 8, "cancelled": 9, "expired": 10, "rejected": 11}
    assert {name: found["snakepit_requests_total", ("outcome", name), pool] for name in outcomes} == outcomes
    states = {
        "ready": 1,
        "busy": 2,
        "starting": 0,
        "cordoned": 0,
        "draining": 0,
        "stopped": 0,
        "crashed": 0,
        "failed": 0,
        "spare": 0,
    }
    assert {name: found["snakepit_workers", pool, ("state", name)] for name in states} == states
    circuits = {"a": 1.0, "b": 0.5, "c": 0.0}
    assert {name: found["snakepit_circuit_open", pool, ("tool", name)] for name in circuits} == circuits
    assert found["snakepit_info", ("version", "1.2")] == 1
    assert found["snakepit_internal_errors_total", ("ended", "call")] == 2
    waits = [found["snakepit_queue_wait_seconds_bucket", ("le", str(bound)), pool] for bound in (*BUCKETS, "+Inf")]
    assert waits == [1.0] * (len(BUCKETS) + 1)
    labels = (("outcome", "completed"), pool, ("tool", "t"))
    ended = [
        found["snakepit_request_duration_seconds_bucket", ("le", str(bound)), *labels] for bound in (*BUCKETS, "+Inf")
    ]
    assert ended == [0.0, 0.0, *[1.0] * (len(BUCKETS) - 2), 2.0]
    assert found["snakepit_request_duration_seconds_sum", *labels] == 1000.002
    assert not any(
        sample.name.startswith("snakepit_internal_errors_total")
        for family in prometheus.RuntimeCollector("1", list, timings).collect()
        for sample in family.samples
    )


# ---- OpenTelemetry -------------------------------------------------------------------------------------


class Span:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.attributes: dict[str, Any] = {}
        self.ended: list[Any] = []
        self.status: Any = None

    def is_recording(self) -> bool:
        return True

    def add_event(self, name: str, attributes: Any, timestamp: int) -> None:
        self.events.append((name, attributes, timestamp))

    def set_attribute(self, name: str, value: Any) -> None:
        self.attributes[name] = value

    def set_attributes(self, values: Any) -> None:
        self.attributes.update(values)

    def set_status(self, status: Any, message: str) -> None:
        self.status = status.name, message

    def end(self, at: Any) -> None:
        self.ended.append(at)


class Instrument:
    """Keeps what it records."""

    def __init__(self) -> None:
        self.recorded: list[Any] = []

    def record(self, value: float, attributes: Any, context: Any = None) -> None:
        self.recorded.append((value, attributes))


class Owner:
    """Whose pools they are."""

    def pools(self) -> Any:
        return [Pool()]


def made() -> tuple[Telemetry, Owner, Instrument, Instrument]:
    owner = Owner()
    telemetry = Telemetry("1", owner.pools, str)
    waits, durations = Instrument(), Instrument()
    telemetry._waits, telemetry._durations = cast("Any", waits), cast("Any", durations)
    return telemetry, owner, waits, durations


def test_gauges_while_the_runtime_lives() -> None:
    from snakepit_trio.observe import tracing

    telemetry, owner, _, _ = made()

    def observed(read: Any) -> list[Any]:
        return [(one.value, one.attributes) for one in telemetry._callback(read)(cast("Any", None))]

    assert observed(tracing._queued) == [(3, {"snakepit.pool": "p"})]
    assert observed(tracing._running) == [(4, {"snakepit.pool": "p"})]
    assert observed(tracing._workers) == [
        (1, {"snakepit.pool": "p", "snakepit.worker.state": "ready"}), (2, {"snakepit.pool": "p", "snakepit.worker.state": "busy"}),
    ]  # fmt: skip
    callback = telemetry._callback(tracing._queued)
    telemetry.close()
    assert list(callback(cast("Any", None))) == []
    other, owner, _, _ = made()
    callback = other._callback(tracing._queued)
    del owner
    gc.collect()
    assert list(callback(cast("Any", None))) == []
    del other
    gc.collect()
    assert list(callback(cast("Any", None))) == []


@pytest.mark.anyio
async def test_the_phases_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from snakepit_trio.observe import tracing

    telemetry, owner, waits, durations = made()
    monkeypatch.setattr(tracing.anyio, "current_time", lambda: 100.0)
    monkeypatch.setattr(tracing.time, "time_ns", lambda: 5_000_000_000_000)
    request: Any = SimpleNamespace(
        tool="t", submitted_at=100.5, dispatched_at=101.0, attempt=1, worker_id="w", error=None, session=None
    )

    def begun(*, decodes: bool = False) -> tuple[tracing.RequestTrace, Span]:
        span = Span()
        return tracing.RequestTrace(telemetry, cast("Any", span), "p", {}, decodes=decodes), span

    def at(moment: float) -> int:
        return int((5000 + moment - 100) * 1e9)

    trace, span = begun()
    trace.note("queued", request, 100.5)
    assert not span.events
    trace.note("dispatched", request, 101.0)
    assert span.events == [
        ("queue", {"snakepit.duration": 0.5}, at(100.5)),
        ("dispatch", {"snakepit.worker_id": "w", "snakepit.attempt": 1}, at(101.0)),
    ]
    # Of another attempt the wait is no phase of its own.
    request.attempt = 2
    trace.note("dispatched", request, 101.0)
    assert [event[0] for event in span.events] == ["queue", "dispatch", "dispatch"] and not span.ended
    trace.note("completed", request, 102.0)
    assert span.events[3:] == [("execute", {"snakepit.duration": 1.0}, at(101.0))]
    assert span.ended == [at(102.0)] and span.status is None
    assert span.attributes == {
        "snakepit.worker_id": "w", "rpc.response.status_code": "OK", "snakepit.outcome": "completed",
    }  # fmt: skip
    trace.end()
    assert span.ended == [at(102.0)]
    assert [value for value, _ in waits.recorded] == [0.5, 0.5] and durations.recorded[0][0] == 1.5
    # One whose result is decoded ends with that, and one that nobody tells of has no time of its own.
    trace, span = begun(decodes=True)
    trace.note("completed", request, 102.0)
    assert not span.ended
    with trace.decode():
        monkeypatch.setattr(tracing.anyio, "current_time", lambda: 103.0)
    assert span.events[-1] == ("decode", {"snakepit.duration": 3.0}, at(100.0)) and span.ended == [at(103.0)]
    trace, span = begun()
    trace.end()
    assert span.ended == [None]
    # No worker had it.
    request.dispatched_at = math.nan
    for outcome, error, code in (
        ("cancelled", None, "CANCELLED"), ("expired", sp.RequestTimeout("late"), "DEADLINE_EXCEEDED"),
        ("failed", sp.ToolError("x", code="odd"), "INTERNAL"),
    ):  # fmt: skip
        request.error = error
        trace, span = begun(decodes=True)
        trace.note(outcome, request, 103.5)
        assert [event[:2] for event in span.events] == [("queue", {"snakepit.duration": 3.0})] and len(span.ended) == 1
        recorded = durations.recorded[-1][1]
        assert span.attributes["snakepit.outcome"] == outcome
        assert (span.status is None) == (error is None) == ("error.type" not in recorded)
        assert span.attributes["rpc.response.status_code"] == recorded["rpc.response.status_code"]
        if outcome != "failed":
            assert recorded["rpc.response.status_code"] == code
        else:
            # There may be any number of a tool's own codes.
            assert recorded["error.type"] == "tool_error"
    del owner


def test_when_there_is_any() -> None:
    owner = Owner()
    assert Telemetry.of("auto", "1", owner.pools, str) is not None
    assert Telemetry.of("off", "1", owner.pools, str) is None
