"""A limit that many holders share and no holder can exhaust.

A quarter is divided among all possible holders, so each can always use its own part. Of the rest a holder may have as
much as it leaves: half for a single holder, a third for each of two, a tenth for each of nine. (This is the dynamic
threshold by which switches share buffers among ports: Choudhury and Hahne, https://doi.org/10.1109/90.664262)
"""

from __future__ import annotations

__all__ = ["FairBudget", "Share", "room_for"]

#: By default there is room for this number of the largest messages, and for at least this number of bytes.
_MESSAGES, _LEAST = 8, 256 * 1024 * 1024


def room_for(largest: int, limit: int | None) -> int:
    """Return a limit in bytes: the given one, or by default several of the largest messages."""
    return max(_MESSAGES * largest, _LEAST) if limit is None else limit


class FairBudget:
    """The shared limit.

    Args:
        limit: The limit for all holders together.
        holders: The largest number of simultaneous holders.
        largest: A holder may always have one item of this size, such as the largest message, within the limit.

    Attributes:
        own: The part that each holder can always use.
        common: The part that all holders share.
        borrowed: The used amount of the common part.
    """

    def __init__(self, limit: int, holders: int, largest: int = 0) -> None:
        self.limit = limit
        self.own: int = min(limit // 4, max(limit - largest, 0)) // holders
        self.common: int = limit - self.own * holders
        self.largest = largest
        self.borrowed = 0
        self.used = 0

    def __repr__(self) -> str:
        return f"<FairBudget used={self.used} limit={self.limit}>"


class Share:
    """The share of one holder.

    Attributes:
        used: The counted amount.
    """

    __slots__ = ("budget", "used")

    def __init__(self, budget: FairBudget) -> None:
        self.budget: FairBudget = budget
        self.used: int = 0

    def __repr__(self) -> str:
        return f"<Share used={self.used} of {self.budget!r}>"

    def change(self, by: int) -> bool:
        """Add a positive or negative amount, and return whether the share is within its limits. An excess is counted until it
        is released.
        """
        budget = self.budget
        before = self.used
        after = self.used = before + by
        budget.used += by
        own = budget.own
        if after <= own and before <= own:
            return True
        borrowed = max(after - own, 0)
        budget.borrowed += borrowed - max(before - own, 0)
        left = budget.common - budget.borrowed
        return by <= 0 or borrowed <= left or (left >= 0 and after <= budget.largest)

    def take(self, size: int) -> bool:
        """Add an amount if it is within the limits, and return whether it is."""
        if self.change(size):
            return True
        self.change(-size)
        return False
