"""Decides how many workers a pool should have, from its load. No I/O, and no clock of its own.

Theory of operation ------------------- *Up*, when a request has waited for ``target_wait``: by the number of workers
that would serve the waiting requests within another ``target_wait``, by recent call durations; at least one, and never
more than there are waiting requests. A pool without workers does not wait for that: its first request starts one. There
is no further step up while added workers are still starting.

*Down*, when for ``scale_down_after`` seconds fewer workers would have sufficed for the running and waiting requests: to
that number. The load is sampled several times in that span; a peak between two samples that was too much for the
workers shows as a wait, and leads up again.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

__all__ = ["Autoscaler", "Load"]

#: The number of samples of the load within ``scale_down_after``.
_LOOKS = 10
#: Seconds. A shorter wait might end before the clock has moved.
_SOONEST = 1e-3


@attrs.frozen(kw_only=True)
class Load:
    """A pool at one moment. Times are in seconds.

    Attributes:
        size: The wanted number of workers.
        starting: The number of them that are not ready yet and may become so.
        in_flight: The running requests.
        queued: The waiting requests that another worker would serve.
        tied: The requests that wait for an existing worker.
        oldest_wait: The wait of the oldest of them.
        service_time: The average duration of recent calls; 0 if unknown.
    """

    size: int
    starting: int
    in_flight: int
    queued: int
    tied: int
    oldest_wait: float
    service_time: float


class Autoscaler:
    """The decisions of one pool.

    Args:
        minimum, maximum: The smallest and largest number of workers.
        threads: The number of calls that a worker runs at once.
        target_wait: The longest acceptable wait of a request for a worker.
        down_after: The time for which the load must have been low.
    """

    def __init__(self, *, minimum: int, maximum: int, threads: int, target_wait: float, down_after: float) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._threads = threads
        self._target_wait = target_wait
        self._interval = down_after / _LOOKS
        self._looks: deque[int] = deque(maxlen=_LOOKS)
        self._next_look = -math.inf

    def decide(self, load: Load, now: float) -> int:
        """Return the size that the pool should have."""
        size = min(max(load.size, self._minimum), self._maximum)
        wanted = self._up(load, size)
        if wanted > size:
            # Samples with fewer workers say little about the new size.
            self._looks.clear()
            self._next_look = now + self._interval
            return wanted
        if now >= self._next_look:
            self._looks.append(load.in_flight + load.queued + load.tied)
            self._next_look = now + self._interval
            if len(self._looks) == _LOOKS:
                enough = math.ceil(max(self._looks) / self._threads)
                return min(size, max(self._minimum, enough))
        return size

    def next_look(self, load: Load, now: float) -> float:
        """Return the time at which :meth:`decide` must be called again; earlier when a request begins to wait."""
        due = self._next_look
        if load.queued and load.size < self._maximum and not load.starting:
            due = min(due, now + max(0.0, self._target_wait - load.oldest_wait))
        return max(due, now + _SOONEST)

    def _up(self, load: Load, size: int) -> int:
        if not load.queued or load.starting:
            return size
        if size and load.oldest_wait < self._target_wait:
            return size
        needed = math.ceil(load.queued * load.service_time / (self._target_wait * self._threads))
        step = max(1, min(needed, math.ceil(load.queued / self._threads)))
        return min(self._maximum, size + step)
