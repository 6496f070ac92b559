"""How many workers a pool should have: decided from its load, by a part without I/O and with no clock of its own.

Theory of operation ------------------- *Up*, when a request has waited for ``target_wait``: by as many workers as are
needed to serve what waits within another ``target_wait``, going by how long calls took of late, at least one, never more
than there are requests waiting. A pool without workers does not wait for that: its first request wakes it. No further
step up while workers that were added are still starting.

*Down*, when for ``scale_down_after`` seconds at most so many requests were under way or waiting that fewer workers would
have done: to that many. The load is looked at a few times in that span; a peak between two looks that was too much for the
workers shows as a wait, and leads up again.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

__all__ = ["Autoscaler", "Load"]

#: How often the load is looked at within ``scale_down_after``.
_LOOKS = 10
#: A shorter wait might end before the clock has moved, in seconds.
_SOONEST = 1e-3


@attrs.frozen(kw_only=True)
class Load:
    """A pool at one moment. Times are in seconds.

    Attributes:
        size: How many workers it is meant to have.
        starting: How many of them are not ready yet and may still become so.
        in_flight: Requests that a worker is running.
        queued: Requests that wait, and that one more worker would serve.
        tied: Requests that wait for a worker that there is.
        oldest_wait: How long the one that came first of them has waited.
        service_time: How long calls took of late; 0 when not known.
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
        minimum, maximum: Between how many workers.
        threads: How many calls a worker runs at once.
        target_wait: How long a request should wait for a worker at most.
        down_after: How long the load must have been low.
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
        """The size that the pool should have."""
        size = min(max(load.size, self._minimum), self._maximum)
        wanted = self._up(load, size)
        if wanted > size:
            # What was seen with fewer workers says little about the new ones.
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
        """When :meth:`decide` is to be asked again at the latest; earlier when a request begins to wait."""
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
