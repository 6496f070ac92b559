"""Metrics for Prometheus, read from the pools at collection time. Needs the extra ``prometheus``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .timings import BUCKETS, Histogram, RequestTimings

__all__ = ["PoolFacts", "RuntimeCollector"]

_STATES = ("starting", "ready", "busy", "cordoned", "draining", "stopped", "crashed", "failed", "spare")


class PoolFacts(Protocol):
    """The collector's view of a pool."""

    name: str

    def stats(self) -> Any: ...
    def workers(self) -> Iterable[Any]: ...
    def circuits(self) -> Mapping[str, str]: ...


class RuntimeCollector(Collector):
    """A collector for all pools of a runtime, for any registry of ``prometheus_client``.

    Labels are bounded: pools, states of workers, outcomes of requests, and a limited number of tools.

    Args:
        version: The library's version.
        pools: Returns the current pools.
        timings: The durations of requests.
        internal_errors: The number of unexpected exceptions, by what they ended.
    """

    def __init__(
        self,
        version: str,
        pools: Callable[[], Iterable[PoolFacts]],
        timings: RequestTimings,
        internal_errors: Mapping[str, int] | None = None,
    ) -> None:
        self._version = version
        self._pools = pools
        self._timings = timings
        self._internal_errors = {} if internal_errors is None else internal_errors

    def describe(self) -> Iterable[Metric]:
        """Return nothing, because the names are known only at collection."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield InfoMetricFamily("snakepit", "The library.", {"version": self._version})
        internal = CounterMetricFamily(
            "snakepit_internal_errors", "Unexpected exceptions, by what they ended.", labels=["ended"]
        )
        for ended, count in list(self._internal_errors.items()):
            internal.add_metric([ended], count)
        yield internal
        yield from self._collect_pools()
        waits = HistogramMetricFamily("snakepit_queue_wait_seconds", "From arrival to dispatch.", labels=["pool"])
        for pool, wait in list(self._timings.waits.items()):
            _add(waits, [pool], wait)
        yield waits
        durations = HistogramMetricFamily(
            "snakepit_request_duration_seconds", "From arrival to end.", labels=["pool", "tool", "outcome"]
        )
        for labels, duration in list(self._timings.durations.items()):
            _add(durations, list(labels), duration)
        yield durations

    def _collect_pools(self) -> Iterator[Metric]:
        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"snakepit_{name}", text, labels=["pool", *labels])

        def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"snakepit_{name}", text, labels=["pool", *labels])

        size = gauge("pool_size", "Workers that the pool is meant to have.")
        workers = gauge("workers", "Workers by state.", "state")
        memory = gauge("workers_memory_bytes", "Resident memory of the workers, as last reported.")
        queued = gauge("queue_length", "Requests that wait for a worker.")
        running = gauge("requests_in_flight", "Requests that a worker is running.")
        remembered = gauge("cancel_set_size", "Cancelled requests that are remembered.")
        circuits = gauge("circuit_open", "1 for a circuit that is open, 0.5 for one that is probed.", "tool")
        accepted = counter("requests_accepted", "Requests taken.")
        ended = counter("requests", "Requests that have ended, by outcome.", "outcome")
        restarts = counter("worker_restarts", "Workers started in place of one that ended unbidden.")
        late = counter("late_replies", "Replies that came after their caller had gone.")
        for pool in self._pools():
            stats, name = pool.stats(), [pool.name]
            infos = list(pool.workers())
            size.add_metric(name, stats.size)
            states = Counter(info.state for info in infos)
            for state in _STATES:
                workers.add_metric([pool.name, state], states[state])
            memory.add_metric(name, sum(info.rss for info in infos))
            queued.add_metric(name, stats.queued)
            running.add_metric(name, stats.in_flight)
            remembered.add_metric(name, stats.cancel_set_size)
            for tool, state in pool.circuits().items():
                circuits.add_metric([pool.name, tool], {"open": 1.0, "half_open": 0.5}.get(state, 0.0))
            accepted.add_metric(name, stats.accepted)
            for outcome, count in (
                ("completed", stats.completed), ("failed", stats.failed), ("cancelled", stats.cancelled),
                ("expired", stats.timed_out), ("rejected", stats.rejected),
            ):  # fmt: skip
                ended.add_metric([pool.name, outcome], count)
            restarts.add_metric(name, stats.restarts)
            late.add_metric(name, stats.late_replies)
        yield from (size, workers, memory, queued, running, remembered, circuits, accepted, ended, restarts, late)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    total, buckets = 0, []
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    family.add_metric(labels, buckets, histogram.sum)
