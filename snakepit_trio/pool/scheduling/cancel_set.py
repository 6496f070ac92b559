"""The ids of requests whose callers are gone: a late reply to one of them is no fault of the worker's."""

from __future__ import annotations

import math

__all__ = ["CancelSet"]


class CancelSet:
    """A bounded set of ids, each forgotten after a time; the oldest goes first when there is no room.

    All operations are O(1), amortised; the clock is the caller's.

    Args:
        capacity: How many ids are remembered at most.
        ttl: For how long each, in seconds.
    """

    def __init__(self, capacity: int, ttl: float) -> None:
        self._capacity = capacity
        self._ttl = ttl
        # In the order of their expiry: an id that comes again goes to the end.
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
        """Whether the id is remembered still."""
        expiry = self._expiry.get(id)
        return expiry is not None and expiry > now

    def discard(self, id: int) -> bool:
        """Forget an id. Returns whether it was remembered."""
        return self._expiry.pop(id, None) is not None

    def next_expiry(self) -> float:
        """When :meth:`expire` has something to forget, infinity when the set is empty."""
        return next(iter(self._expiry.values()), math.inf)

    def expire(self, now: float) -> int:
        """Forget what is old enough. Returns how many that were."""
        forgotten = 0
        while self._expiry:
            id, expiry = next(iter(self._expiry.items()))
            if expiry > now:
                break
            del self._expiry[id]
            forgotten += 1
        return forgotten
