"""The books of one worker incarnation, and the scheduler's way to it."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import TYPE_CHECKING, Protocol

from snakepit_trio._interrupts import protected

if TYPE_CHECKING:
    from snakepit_trio.errors import SnakepitError

    from .request import Request

__all__ = ["Port", "Seats"]


class Port(Protocol):
    """The way to one worker, as the scheduler uses it. None of these methods waits or calls back."""

    def start(self, request: Request) -> None:
        """Send the call. The worker begins it when it has a thread free, in the order in which calls were sent."""

    @protected
    def cancel(self, request: Request) -> None:
        """Tell the worker that the caller of a running call is gone, and see to it that the seat comes back."""

    def withdraw(self, request: Request) -> None:
        """Tell the worker that the caller of a call is gone that has not begun, as far as is known here."""

    def recall(self, request: Request) -> None:
        """Ask the worker to give a call back that it has not begun."""


class Seats:
    """The books of one worker incarnation.

    Attributes:
        port: The way to the worker.
        capacity: How many calls it runs at once.
        depth: How many more it may hold, in line behind those that run.
        open: New calls may be given to it.
        over: They never will be again.
        alone: No more calls until it is empty: one that may have ended workers runs here, or waits to, and would be no sign of
            anything beside others.
        end: How the worker ended, once it has.
        running: Calls whose callers wait, by id.
        leaving: Calls whose callers are gone, by id; the worker has not confirmed that it stopped them.
        ahead: Calls that the worker holds and has not begun, by id, first in, first out. For everybody else those whose
            callers wait are still queued; of the others the worker has not confirmed that it dropped them.
        since: When the call that runs began; only kept where there is a line.
        served: How many calls have come to an end here.
        place: Where it stands among those that have room, for the scheduler.
    """

    __slots__ = (
        "ahead",
        "alone",
        "capacity",
        "depth",
        "end",
        "leaving",
        "open",
        "over",
        "place",
        "port",
        "running",
        "served",
        "since",
    )

    def __init__(self, port: Port, capacity: int, depth: int = 0) -> None:
        self.port = port
        self.capacity = capacity
        self.depth = depth
        self.open = False
        self.over = False
        self.alone = False
        self.end: SnakepitError | None = None
        self.running: dict[int, Request] = {}
        self.leaving: dict[int, Request] = {}
        self.ahead: dict[int, Request] = {}
        self.since = -math.inf
        self.served = 0
        self.place: dict[Seats, None] | None = None

    @property
    def load(self) -> int:
        """Seats that are taken."""
        return len(self.running) + len(self.leaving)

    @property
    def stuck(self) -> bool:
        """Whether its worker takes no calls and ends because of one that does not stop, after those that run beside it."""
        return not self.over and any(request.stuck for request in self.leaving.values())

    def empties_after(self, blocked: Container[object]) -> bool:
        """Whether one of these has to end before nothing runs here for anybody."""
        return any(request in blocked for request in self.running.values())

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        line = f" ahead={len(self.ahead)}" if self.depth else ""
        return f"<Seats {state} running={len(self.running)} leaving={len(self.leaving)} of {self.capacity}{line}>"
