"""Histograms of the durations of requests, for a bounded number of tools."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["BUCKETS", "Histogram", "RequestTimings"]

#: Upper bounds of the buckets, in seconds.
BUCKETS: Sequence[float] = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip


class Histogram:
    """Counts values in :data:`BUCKETS`.

    Attributes:
        counts: The number of values in each bucket, and above the last bound.
        sum: The sum of all values.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BUCKETS) + 1)
        self.sum: float = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.sum += value


class RequestTimings:
    """The histograms of a runtime.

    Args:
        max_tools: The number of tools of a pool with their own histogram; the others share ``"other"``.

    Attributes:
        waits: By pool: the time from a request's arrival to its dispatch.
        durations: By pool, tool and outcome: the time from a request's arrival to its end.
    """

    def __init__(self, max_tools: int) -> None:
        self._max_tools = max_tools
        self._tools: dict[str, set[str]] = {}
        self.waits: dict[str, Histogram] = {}
        self.durations: dict[tuple[str, str, str], Histogram] = {}

    def ended(self, pool: str, tool: str, outcome: str, wait: float, duration: float) -> None:
        """Count an ended request; ``wait`` is nan if it was not dispatched. A refused request is not counted."""
        if outcome == "rejected":
            return
        known = self._tools.setdefault(pool, set())
        if tool not in known:
            if len(known) < self._max_tools:
                known.add(tool)
            else:
                tool = "other"
        key = (pool, tool, outcome)
        found = self.durations.get(key)
        if found is None:
            found = self.durations[key] = Histogram()
        found.add(duration)
        if wait == wait:  # Not nan.
            self.waits.setdefault(pool, Histogram()).add(wait)
