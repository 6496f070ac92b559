"""Which worker has room for a request: a free seat, or a place in the line behind a short call.

A worker with one seat that is busy with a short call may be given the next calls already, so that it never waits for
its host between two of them. That pays only for calls so short that the way to the worker and back counts, and it must
not hurt any other: so a line stands only behind a call of a tool that is short on average, it is made of such calls, and
whoever stands in it can be recalled (:class:`Recall`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized

from .request import Phase, Request, Seats

__all__ = ["PATIENCE", "SHORT", "Placement", "Recall"]

#: Seconds. A tool whose calls take no longer than this on average is short.
SHORT = 0.002
#: Seconds. A call of a short tool that has run for longer has turned out long: nobody waits behind it who need not.
PATIENCE = 0.01
#: Seconds. For so long after a request of higher priority came, those below its priority stand in no line.
_RESPECT = 0.05
#: So many calls of a tool that has ended a worker stand in no line, and have none behind them: the worker holds the replies of
#: short calls back for a moment, to send them together, and they would end with the next one that ends it.
_CAREFUL = 1000
#: The weight of one call in an average of how long calls take.
_SMOOTHING = 0.1


class Placement:
    """The open incarnations that have room, the emptiest first, and whoever holds calls that have not begun.

    Attributes:
        waiting: How many requests stand in lines and have callers that wait.
        service_time: How long calls took of late, in seconds: an exponential average, 0 before the first.
    """

    def __init__(self) -> None:
        self.waiting: int = 0
        self.service_time: float = 0.0
        # By how many seats are taken, and by how long the line is; each bucket is gone through in turn.
        self._free: list[dict[Seats, None]] = [{}]
        self._lines: list[dict[Seats, None]] = []
        # By tool, how long its calls take; of one that has just turned out long, not much is counted.
        self._paces: dict[str, float] = {}
        # By tool, how many more of its calls are to be handled with care.
        self._careful: dict[str, int] = {}
        # The tools whose calls are short, by both.
        self._short: set[str] = set()
        # Incarnations with a line, roughly by when the call began that they run.
        self._holders: dict[Seats, None] = {}
        # How many stand in lines, by priority; and up to when which priorities may not.
        self._priorities: dict[int, int] = {}
        self._floor = -math.inf
        self._floor_until = -math.inf

    def admit(self, seats: Seats) -> None:
        """Make room for an incarnation's numbers."""
        while len(self._free) < seats.capacity:
            self._free.append({})
        while len(self._lines) < seats.depth:
            self._lines.append({})

    def rebuild(self, known: Iterable[Seats]) -> None:
        """Begin anew with these incarnations, from what each of them holds."""
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
        """Put an incarnation where it belongs by what it holds now.

        Args:
            began: When the next of its calls began, if that is what has changed.
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
                # Where there may be a line, one call runs, or none whose caller waits.
                for request in seats.running.values():
                    if request.tool in self._short:
                        new = self._lines[len(seats.ahead)]
        if old is not None:
            del old[seats]
        if new is not None:
            new[seats] = None
        seats.place = new

    def seat(self) -> Seats | None:
        """The emptiest incarnation with a free seat."""
        for bucket in self._free:
            if bucket:
                return next(iter(bucket))
        return None

    def seats(self) -> Iterator[Seats]:
        """All incarnations with a free seat, the emptiest first."""
        for bucket in self._free:
            yield from tuple(bucket)

    def line(self, request: Request, now: float) -> Seats | None:
        """The incarnation with the shortest line in which a request may stand."""
        if not self.may_stand(request, now):
            return None
        for bucket in self._lines:
            while bucket:
                seats = next(iter(bucket))
                if now < seats.since + PATIENCE:
                    return seats
                # It comes back with its next call.
                del bucket[seats]
                seats.place = None
        return None

    def has_line(self, seats: Seats, now: float) -> bool:
        """Whether one more may stand in the line of an incarnation."""
        return seats.place is not None and len(seats.ahead) < seats.depth and now < seats.since + PATIENCE

    def may_stand(self, request: Request, now: float) -> bool:
        """Whether a request may stand in a line at all: not what is long, nor what keeps an order or a lock of its own."""
        return (
            request.session is None
            and not request.stream
            and not request.chain
            and (request.beside is None or len(request.beside) == 1)
            and self.is_short(request.tool)
            and (request.priority >= self._floor or now >= self._floor_until)
        )

    def is_short(self, tool: str) -> bool:
        """Whether the calls of a tool are short, by those that there were."""
        return tool in self._short

    def note(self, tool: str, seconds: float) -> None:
        """A call has taken so long."""
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
        """A worker has ended while it ran a call of this tool."""
        self._careful[tool] = _CAREFUL
        self._short.discard(tool)

    # ---- lines -------------------------------------------------------------------------------------

    def joined(self, seats: Seats, request: Request) -> None:
        """A request stands in a line now."""
        self.waiting += 1
        self._priorities[request.priority] = self._priorities.get(request.priority, 0) + 1
        if seats not in self._holders:
            self._holders[seats] = None

    def left(self, request: Request) -> None:
        """A request stands in no line any more."""
        self.waiting -= 1
        count = self._priorities[request.priority] - 1
        if count:
            self._priorities[request.priority] = count
        else:
            del self._priorities[request.priority]

    def forget(self, seats: Seats) -> None:
        """An incarnation's line is dissolved: it is at its end, or all that stood in it was asked for."""
        self._holders.pop(seats, None)

    def overtaken(self, request: Request, now: float) -> bool:
        """Whether somebody stands in a line who should come after this request, which can't."""
        if not self._priorities or min(self._priorities) >= request.priority:
            return False
        self._floor, self._floor_until = request.priority, now + _RESPECT
        return True

    def holders(self) -> Iterator[Seats]:
        """The incarnations with a line."""
        return iter(tuple(self._holders))

    def before(self, priority: int) -> int:
        """How many stand in lines who would not make way for a request of this priority."""
        return sum(count for other, count in self._priorities.items() if other >= priority)

    def oldest_arrival(self) -> float:
        """When the request came that has stood in a line for longest; infinity when none does."""
        waiting = (r for seats in self._holders for r in seats.ahead.values() if r.phase is Phase.QUEUED)
        return min((request.submitted_at for request in waiting), default=math.inf)

    def hostage_since(self) -> float:
        """When the oldest call began behind which others stand, infinity when there is none."""
        for seats in self._holders:
            return seats.since
        return math.inf


class Recall:
    """Asks calls back that were sent to a worker ahead of their time.

    A call is recalled when the call before it turns out long while other workers have room, when a request of higher priority
    comes, and when its worker is to get no more calls. The worker answers either that it gives a call back unbegun, or in the
    usual way.

    Args:
        placement: Which calls each worker holds ahead.
        known: All incarnations that there are.
        on_due: Called with a time when ``look_at`` has become that.

    Attributes:
        look_at: When to :meth:`look` whether somebody stands in line behind a long call while others have room.
    """

    def __init__(self, placement: Placement, known: Sized, on_due: Callable[[float], object]) -> None:
        self.look_at: float = math.inf
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
