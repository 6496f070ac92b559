"""How long requests took, counted in buckets, for a bounded number of tools."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["BUCKETS", "Histogram", "RequestTimings"]

#: Upper bounds, in seconds.
BUCKETS: Sequence[float] = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip


class Histogram:
    """Counts values by :data:`BUCKETS`.

    Attributes:
        counts: How many values there are in each bucket, and beyond the last.
        sum: Of all values.
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
        max_tools: How many tools of a pool are told apart; the others are ``"other"``.

    Attributes:
        waits: By pool: from a request's arrival to its dispatch.
        durations: By pool, tool and outcome: from its arrival to its end.
    """

    def __init__(self, max_tools: int) -> None:
        self._max_tools = max_tools
        self._tools: dict[str, set[str]] = {}
        self.waits: dict[str, Histogram] = {}
        self.durations: dict[tuple[str, str, str], Histogram] = {}

    def ended(self, pool: str, tool: str, outcome: str, wait: float, duration: float) -> None:
        """A request has ended; ``wait`` is nan when no worker had it. One that was refused took no time."""
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
