"""A limit that many use together and none uses up.

A quarter of it is divided among all that there may be: each can have its own part, whatever the others want. Of the rest each
may have as much as it leaves: one that is alone half, each of two a third, each of nine a tenth. (The dynamic threshold by
which switches share their buffers among ports: Choudhury and Hahne, https://doi.org/10.1109/90.664262)
"""

from __future__ import annotations

__all__ = ["FairBudget", "Share", "room_for"]

#: So many of the largest messages have room where nothing else is said, and so many bytes at least.
_MESSAGES, _LEAST = 8, 256 * 1024 * 1024


def room_for(largest: int, limit: int | None) -> int:
    """A limit in bytes: the one that was given, or by default some of the largest messages."""
    return max(_MESSAGES * largest, _LEAST) if limit is None else limit


class FairBudget:
    """What is shared.

    Args:
        limit: For all together.
        holders: How many there may be at once.
        largest: One may have as much as this, such as the largest message, also when that is more than it leaves; never more
            than there is.

    Attributes:
        own: What each can have in any case.
        common: What they have together beside that.
        borrowed: How much of it is used.
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
    """What one has of it.

    Attributes:
        used: What is counted now.
    """

    __slots__ = ("budget", "used")

    def __init__(self, budget: FairBudget) -> None:
        self.budget: FairBudget = budget
        self.used: int = 0

    def __repr__(self) -> str:
        return f"<Share used={self.used} of {self.budget!r}>"

    def change(self, by: int) -> bool:
        """Count so much more, or less; whether that is within the limits. What is too much is counted all the same, until it
        is dropped."""
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
        """Count so much more if that is within the limits; whether it is."""
        if self.change(size):
            return True
        self.change(-size)
        return False
