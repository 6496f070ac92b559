"""What a runtime tells Prometheus and OpenTelemetry of its pools, number by number."""

from __future__ import annotations

import gc
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

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
    states = {"ready": 1, "busy": 2, "starting": 0, "draining": 0, "stopped": 0, "crashed": 0, "failed": 0, "spare": 0}
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


def test_when_there_is_any() -> None:
    owner = Owner()
    assert Telemetry.of("auto", "1", owner.pools, str) is not None
    assert Telemetry.of("off", "1", owner.pools, str) is None
