"""Which worker has room for a request: a free seat, or a prefetch place behind a short call.

A worker with one seat that runs a short call may already get the next calls, so that it never waits for its host
between two of them. That pays only for calls so short that the round trip matters, and must not delay others. So calls
are prefetched only behind a call of a tool that is short on average, only calls of such tools are prefetched, and a
prefetched call can be recalled (:class:`Recall`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized

from .request import Phase, Request, Seats

__all__ = ["PATIENCE", "SHORT", "Placement", "Recall"]

#: Seconds. A tool is short if its calls take no longer than this on average.
SHORT = 0.002
#: Seconds. After this long, a call of a short tool counts as long; calls prefetched behind it are recalled.
PATIENCE = 0.01
#: Seconds. For this time after the arrival of a request of higher priority, requests of lower priority are not
#: prefetched.
_RESPECT = 0.05
#: The number of calls for which a tool that has ended a worker is not prefetched, and has no calls prefetched behind it.
#: A worker holds replies of short calls for a moment to send them together, and these would be lost with the worker.
_CAREFUL = 1000
#: The weight of one call in the average duration.
_SMOOTHING = 0.1


class Placement:
    """The open incarnations with room, emptiest first, and those with prefetched calls.

    Attributes:
        waiting: The number of prefetched requests with waiting callers.
        service_time: The average duration of recent calls, in seconds: exponential, 0 before the first.
    """

    def __init__(self) -> None:
        self.waiting: int = 0
        self.service_time: float = 0.0
        # By the number of taken seats, and by the number of prefetched calls; each bucket is visited in turn.
        self._free: list[dict[Seats, None]] = [{}]
        self._lines: list[dict[Seats, None]] = []
        # The average duration by tool; after a long call it starts again.
        self._paces: dict[str, float] = {}
        # The number of further calls of a tool that are not prefetched.
        self._careful: dict[str, int] = {}
        # The tools that are short by both tables.
        self._short: set[str] = set()
        # Incarnations with prefetched calls, roughly by the start of their running call.
        self._holders: dict[Seats, None] = {}
        # The number of prefetched calls by priority; and the time until which each priority may not be prefetched.
        self._priorities: dict[int, int] = {}
        self._floor = -math.inf
        self._floor_until = -math.inf

    def admit(self, seats: Seats) -> None:
        """Make room in the tables for an incarnation's capacity."""
        while len(self._free) < seats.capacity:
            self._free.append({})
        while len(self._lines) < seats.depth:
            self._lines.append({})

    def rebuild(self, known: Iterable[Seats]) -> None:
        """Rebuild the tables from these incarnations."""
        self.waiting = 0
        self._free, self._lines = [{}], []
        self._holders.clear()
        self._priorities.clear()
        for seats in known:
            seats.place = None
            self.admit(seats)
            for request in seats.ahead.values():
                if request.phase is Phase.QUEUED:
                    self.joined(seats, request)
            self.place(seats)

    # ---- room --------------------------------------------------------------------------------------

    def place(self, seats: Seats, *, began: float | None = None) -> None:
        """Put an incarnation into the right bucket for its calls.

        Args:
            began: The start of its next call, if that has changed.
        """
        if began is not None and seats.depth:
            seats.since = began
            if self._holders:
                self._holders.pop(seats, None)
                if seats.ahead:
                    self._holders[seats] = None
        old = seats.place
        new: dict[Seats, None] | None = None
        if seats.open and not seats.alone:
            load = len(seats.running) + len(seats.leaving)
            if load < seats.capacity:
                new = self._free[load]
            elif len(seats.ahead) < seats.depth:
                # An incarnation with prefetched calls runs one call, or none with a waiting caller.
                for request in seats.running.values():
                    if request.tool in self._short:
                        new = self._lines[len(seats.ahead)]
        if old is not None:
            del old[seats]
        if new is not None:
            new[seats] = None
        seats.place = new

    def seat(self) -> Seats | None:
        """Return the emptiest incarnation with a free seat."""
        for bucket in self._free:
            if bucket:
                return next(iter(bucket))
        return None

    def seats(self) -> Iterator[Seats]:
        """Yield all incarnations with a free seat, emptiest first."""
        for bucket in self._free:
            yield from tuple(bucket)

    def line(self, request: Request, now: float) -> Seats | None:
        """Return the incarnation with the fewest prefetched calls to which a request may be prefetched."""
        if not self.may_stand(request, now):
            return None
        for bucket in self._lines:
            while bucket:
                seats = next(iter(bucket))
                if now < seats.since + PATIENCE:
                    return seats
                # It returns with its next call.
                del bucket[seats]
                seats.place = None
        return None

    def has_line(self, seats: Seats, now: float) -> bool:
        """Return whether one more call may be prefetched to an incarnation."""
        return seats.place is not None and len(seats.ahead) < seats.depth and now < seats.since + PATIENCE

    def may_stand(self, request: Request, now: float) -> bool:
        """Return whether a request may be prefetched at all: not a long one, nor one with an order or a lock of its own."""
        return (
            request.session is None
            and not request.stream
            and not request.chain
            and (request.beside is None or len(request.beside) == 1)
            and self.is_short(request.tool)
            and (request.priority >= self._floor or now >= self._floor_until)
        )

    def is_short(self, tool: str) -> bool:
        """Return whether a tool is short, by its calls so far."""
        return tool in self._short

    def note(self, tool: str, seconds: float) -> None:
        """Record the duration of a call."""
        self.service_time += (seconds - self.service_time) * (_SMOOTHING if self.service_time else 1.0)
        seconds = min(seconds, 5 * SHORT)
        if self._careful:
            left = self._careful.pop(tool, 0) - 1
            if left > 0:
                self._careful[tool] = left
        known = self._paces.get(tool)
        pace = self._paces[tool] = seconds if known is None else known + (seconds - known) * _SMOOTHING
        if pace <= SHORT and tool not in self._careful:
            self._short.add(tool)
        else:
            self._short.discard(tool)

    def beware(self, tool: str) -> None:
        """Record that a worker has ended while it ran a call of this tool."""
        self._careful[tool] = _CAREFUL
        self._short.discard(tool)

    # ---- lines -------------------------------------------------------------------------------------

    def joined(self, seats: Seats, request: Request) -> None:
        """Record that a request was prefetched."""
        self.waiting += 1
        self._priorities[request.priority] = self._priorities.get(request.priority, 0) + 1
        if seats not in self._holders:
            self._holders[seats] = None

    def left(self, request: Request) -> None:
        """Record that a request is not prefetched any more."""
        self.waiting -= 1
        count = self._priorities[request.priority] - 1
        if count:
            self._priorities[request.priority] = count
        else:
            del self._priorities[request.priority]

    def forget(self, seats: Seats) -> None:
        """Record that an incarnation has no prefetched calls any more: it is ending, or all were recalled."""
        self._holders.pop(seats, None)

    def overtaken(self, request: Request, now: float) -> bool:
        """Return whether a call is prefetched that should come after this request, which can't be."""
        if not self._priorities or min(self._priorities) >= request.priority:
            return False
        self._floor, self._floor_until = request.priority, now + _RESPECT
        return True

    def holders(self) -> Iterator[Seats]:
        """Yield the incarnations with prefetched calls."""
        return iter(tuple(self._holders))

    def before(self, priority: int) -> int:
        """Return the number of prefetched calls that would not yield to a request of this priority."""
        return sum(count for other, count in self._priorities.items() if other >= priority)

    def oldest_arrival(self) -> float:
        """Return the arrival of the oldest prefetched request; infinity if there is none."""
        waiting = (r for seats in self._holders for r in seats.ahead.values() if r.phase is Phase.QUEUED)
        return min((request.submitted_at for request in waiting), default=math.inf)

    def hostage_since(self) -> float:
        """Return the start of the oldest running call behind which calls are prefetched; infinity if there is none."""
        for seats in self._holders:
            return seats.since
        return math.inf


class Recall:
    """Recalls prefetched calls.

    A call is recalled when the call before it turns out to be long while other workers have room, when a request of
    higher priority arrives, and when its worker must get no more calls. The worker either gives the call back unbegun,
    or answers as usual.

    Args:
        placement: The prefetched calls of each worker.
        known: All existing incarnations.
        on_due: Called with a time when ``look_at`` becomes that time.

    Attributes:
        look_at: The time for the next :meth:`look`.
    """

    def __init__(self, placement: Placement, known: Sized, on_due: Callable[[float], object]) -> None:
        self.look_at: float = math.inf
        self._placement = placement
        self._known = known
        self._on_due = on_due

    def look_later(self) -> None:
        """Schedule a look, because a seat is free while calls are prefetched: the call before them may turn out to be
        long.
        """
        due = self._placement.hostage_since() + PATIENCE
        if due < self.look_at:
            self.look_at = due
            self._on_due(due)

    def look(self, now: float) -> None:
        """Recall the calls that are prefetched behind a long call, if other workers have room."""
        self.look_at = math.inf
        if len(self._known) > 1:
            for seats in self._placement.holders():
                if now >= seats.since + PATIENCE:
                    self.recall(seats)
            if self._placement.seat() is not None:
                self.look_later()

    def recall(self, seats: Seats) -> None:
        """Recall all prefetched calls of a worker."""
        self._placement.forget(seats)
        for request in seats.ahead.values():
            if request.phase is Phase.QUEUED and not request.recalled:
                request.recalled = True
                seats.port.recall(request)

    def recall_below(self, priority: int) -> None:
        """Recall prefetched calls of lower priority than a new request."""
        for seats in self._placement.holders():
            for request in seats.ahead.values():
                if request.phase is Phase.QUEUED and not request.recalled and request.priority < priority:
                    request.recalled = True
                    seats.port.recall(request)
