"""How many bytes of requests may wait to be decoded: over all connections, and of one of them.

A client with the token may send as many long messages at once as it has streams, on as many connections as there may be.
What has arrived of them is kept until they are whole and their handler has taken them, so all of it together has a limit.
One connection may have half of it: it can't keep the others out.
"""

from __future__ import annotations

__all__ = ["Budget", "Share"]


class Budget:
    """The bytes of a bridge.

    Args:
        limit: For all connections.
        longest: The longest message: one connection may have at least that, where the limit allows it.
    """

    def __init__(self, limit: int, longest: int) -> None:
        self.limit = limit
        self.share = max(limit // 2, min(limit, longest))
        self.used = 0

    def __repr__(self) -> str:
        return f"<Budget used={self.used} limit={self.limit}>"


class Share:
    """What one connection has of it."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._used = 0

    def __repr__(self) -> str:
        return f"<Share used={self._used} of {self._budget!r}>"

    def change(self, by: int) -> bool:
        """Count so many bytes more, or fewer; whether that is within the limits. What is too much is counted all the same,
        until it is dropped."""
        budget = self._budget
        self._used += by
        budget.used += by
        return by <= 0 or (self._used <= budget.share and budget.used <= budget.limit)
