"""When those are asked back who stand in a worker's line: calls that were sent to it ahead of their time.

They are when the call before them turns out long while others have room, when a request of higher priority comes, and
when the worker is to get no more calls. The worker answers either that it gives a call back unbegun, or in the usual way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized

from .placement import PATIENCE, Placement
from .request import Phase
from .seats import Seats

__all__ = ["Recall"]


class Recall:
    """The lines of one pool's workers.

    Args:
        places: Who stands where.
        known: All incarnations that there are.
        on_due: Called with a time when ``look_at`` has become that.

    Attributes:
        look_at: When to :meth:`look` whether somebody stands in line behind a long call while others have room.
    """

    def __init__(self, placement: Placement, known: Sized, on_due: Callable[[float], object]) -> None:
        self.look_at = math.inf
        self._placement = placement
        self._known = known
        self._on_due = on_due

    def look_later(self) -> None:
        """A seat is free while others stand in line: to be looked at again when the call before them has turned out long."""
        due = self._placement.hostage_since() + PATIENCE
        if due < self.look_at:
            self.look_at = due
            self._on_due(due)

    def look(self, now: float) -> None:
        """Ask those back who stand in line behind a call that has turned out long, if there is any other way for them."""
        self.look_at = math.inf
        if len(self._known) > 1:
            for seats in self._placement.holders():
                if now >= seats.since + PATIENCE:
                    self.recall(seats)
            if self._placement.seat() is not None:
                self.look_later()

    def recall(self, seats: Seats) -> None:
        """Ask a worker's line back."""
        self._placement.forget(seats)
        for request in seats.ahead.values():
            if request.phase is Phase.QUEUED and not request.recalled:
                request.recalled = True
                seats.port.recall(request)

    def recall_below(self, priority: int) -> None:
        """Ask those back who stand in line and should come after somebody who came now."""
        for seats in self._placement.holders():
            for request in seats.ahead.values():
                if request.phase is Phase.QUEUED and not request.recalled and request.priority < priority:
                    request.recalled = True
                    seats.port.recall(request)
