"""Expiry of requests, and of the ids of cancelled requests.

Theory of operation ------------------- Deadlines are rounded up to one millisecond and hashed into buckets, so adding
and removing are one dictionary operation each, whatever the number of entries. A heap holds the keys of the buckets. An
empty bucket is deleted at once; its key is deleted when it comes up, or when most of the heap's keys are dead. So a
distant deadline that is removed soon leaves nothing behind for long.

The id of a cancelled request is remembered for some time, because a late reply to it is not a fault of the worker.
"""

from __future__ import annotations

import heapq
import math
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["GRAIN", "CancelSet", "DeadlineWheel", "Expiring"]

#: Seconds. An entry expires at its deadline or at most this much later, never earlier.
GRAIN = 0.001
_PER_SECOND = 1000
#: Seconds. Later than any clock will show, so that infinity needs no special case.
_NEVER = 1e12


class Expiring(Protocol):
    """An entry of a wheel, which owns the attribute."""

    deadline_node: Any


E = TypeVar("E", bound=Expiring)


class DeadlineWheel(Generic[E]):
    """Entries and their deadlines, in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[E, float]] = {}
        self._keys: list[int] = []
        self._known: set[int] = set()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<DeadlineWheel {self._size} entries in {len(self._buckets)} buckets>"

    def add(self, entry: E, deadline: float) -> None:
        """Add an entry that is not in the wheel. An entry that never expires is not stored."""
        if deadline >= _NEVER:
            entry.deadline_node = None
            return
        key = int(deadline * _PER_SECOND) + 1
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = {}
            if key not in self._known:
                if len(self._keys) > 2 * len(self._buckets) + 64:
                    self._rebuild()
                else:
                    self._known.add(key)
                    heapq.heappush(self._keys, key)
        bucket[entry] = deadline
        entry.deadline_node = key
        self._size += 1

    def remove(self, entry: E) -> None:
        """Remove an entry, if it is in the wheel."""
        key = entry.deadline_node
        if key is None:
            return
        entry.deadline_node = None
        bucket = self._buckets[key]
        del bucket[entry]
        self._size -= 1
        if not bucket:
            del self._buckets[key]

    def move(self, entry: E, deadline: float) -> None:
        """Change the deadline of an entry."""
        self.remove(entry)
        self.add(entry, deadline)

    def clear(self) -> None:
        """Forget all entries; the caller resets their ``deadline_node``."""
        self._buckets.clear()
        self._keys.clear()
        self._known.clear()
        self._size = 0

    def next_deadline(self) -> float:
        """Return the time at which :meth:`expire` has something to return; infinity if the wheel is empty."""
        keys = self._keys
        while keys and keys[0] not in self._buckets:
            self._known.discard(heapq.heappop(keys))
        return keys[0] / _PER_SECOND if keys else math.inf

    def expire(self, now: float) -> list[E]:
        """Remove and return the expired entries, in the order of their deadlines."""
        due: list[tuple[float, E]] = []
        while self.next_deadline() <= now:
            key = heapq.heappop(self._keys)
            self._known.discard(key)
            for entry, deadline in self._buckets.pop(key).items():
                entry.deadline_node = None
                due.append((deadline, entry))
        self._size -= len(due)
        due.sort(key=lambda item: item[0])
        return [entry for _, entry in due]

    def _rebuild(self) -> None:
        self._keys = list(self._buckets)
        heapq.heapify(self._keys)
        self._known = set(self._keys)


class CancelSet:
    """A bounded set of ids, each forgotten after some time; without room, the oldest is forgotten first.

    All operations are O(1), amortised; the caller provides the clock.

    Args:
        capacity: The largest number of ids.
        ttl: The time for which each is remembered, in seconds.
    """

    def __init__(self, capacity: int, ttl: float) -> None:
        self._capacity = capacity
        self._ttl = ttl
        # In the order of expiry: an id that is added again moves to the end.
        self._expiry: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._expiry)

    def __repr__(self) -> str:
        return f"<CancelSet {len(self._expiry)} of {self._capacity}, {self._ttl:g} s>"

    def add(self, id: int, now: float) -> None:
        """Remember an id."""
        if self._capacity <= 0:
            return
        self._expiry.pop(id, None)
        if len(self._expiry) >= self._capacity:
            del self._expiry[next(iter(self._expiry))]
        self._expiry[id] = now + self._ttl

    def seen(self, id: int, now: float) -> bool:
        """Return whether the id is still remembered."""
        expiry = self._expiry.get(id)
        return expiry is not None and expiry > now

    def discard(self, id: int) -> bool:
        """Forget an id, and return whether it was remembered."""
        return self._expiry.pop(id, None) is not None

    def next_expiry(self) -> float:
        """Return the time at which :meth:`expire` has something to forget; infinity if the set is empty."""
        return next(iter(self._expiry.values()), math.inf)

    def expire(self, now: float) -> int:
        """Forget the expired ids, and return their number."""
        forgotten = 0
        while self._expiry:
            id, expiry = next(iter(self._expiry.items()))
            if expiry > now:
                break
            del self._expiry[id]
            forgotten += 1
        return forgotten
