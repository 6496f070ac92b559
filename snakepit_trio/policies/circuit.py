"""A circuit breaker without a clock of its own.

::

    closed --too many failures in the window--> open --after open_for--> half-open
      ^                                          ^                          |
      |                                          +------ a probe failed ----+
      +----------------- as many probes as configured have succeeded -------+

Each call holds a :class:`Permit` while it runs and settles it when it ends, once: as a success, as a failure, or as
neither (its caller has gone, it was refused). A permit counts for the state that it was given in: what comes late, from
before the last change, is not held against the new state, and a probe that ends without a verdict gives its place to
another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from snakepit_trio._timeouts import seconds
from snakepit_trio.errors import CircuitOpen

if TYPE_CHECKING:
    from .options import CircuitConfig

__all__ = ["Circuit", "Permit", "State", "Verdict"]

#: The window moves in this number of steps.
_STEPS = 100


class State(Enum):
    """The state of a circuit."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Verdict(Enum):
    """The outcome of a call for its circuit."""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"


class Permit:
    """The right to make one call."""

    __slots__ = ("_circuit", "_era", "_settled")

    def __init__(self, circuit: Circuit, era: int) -> None:
        self._circuit = circuit
        self._era = era
        self._settled = False

    def settle(self, verdict: Verdict, now: float) -> None:
        """Record the outcome of the call. Only the first outcome counts."""
        if not self._settled:
            self._settled = True
            self._circuit._settle(self._era, verdict, now)


class Circuit:
    """One circuit breaker.

    Args:
        config: When the circuit opens, and for how long.
        name: The circuit's name in errors.
        told: Called after each change with the new state, and the numbers of failed calls and of all calls in the
            window before.

    Attributes:
        state: The state; an open circuit becomes half-open at the first call after its time.
    """

    def __init__(
        self,
        config: CircuitConfig,
        name: str = "",
        told: Callable[[State, int, int], object] = lambda state, failures, calls: None,
    ) -> None:
        self.state: State = State.CLOSED
        self._config = config
        self._name = name
        self._told = told
        # Each step's number, calls and failures.
        self._steps: deque[list[int]] = deque()
        # The sums over all steps.
        self._calls = self._failures = 0
        self._width = config.window / _STEPS
        self._until = 0.0
        self._era = 0
        self._probing = 0
        self._passed = 0

    def __repr__(self) -> str:
        return f"<Circuit {self._name!r} {self.state.value} probing={self._probing}>"

    def check(self, now: float) -> None:
        """Refuse a call that could not pass now, without taking a permit.

        Raises:
            CircuitOpen: The circuit is open, or half-open with all its probes in progress.
        """
        if self.state is State.OPEN and now < self._until:
            self._refuse(self._until - now)
        # Only a half-open circuit has probes.
        if self._probing + self._passed >= self._config.probes:
            self._refuse(0.0)

    def acquire(self, now: float) -> Permit:
        """Return a permit for a call that begins now; its holder must settle it.

        Raises:
            CircuitOpen: The circuit is open, or half-open with all its probes in progress; ``details["retry_after"]``
                is the time until it may be probed, in seconds.
        """
        self.check(now)
        if self.state is State.OPEN:
            self._become(State.HALF_OPEN)
        if self.state is State.HALF_OPEN:
            self._probing += 1
        return Permit(self, self._era)

    @contextmanager
    def permit(self, clock: Callable[[], float], judge: Callable[[BaseException], Verdict]) -> Iterator[Permit]:
        """Hold a permit during a block, and judge the exception of the block.

        Raises:
            CircuitOpen: As in :meth:`acquire`.
        """
        permit = self.acquire(clock())
        try:
            yield permit
        except BaseException as exc:
            permit.settle(judge(exc), clock())
            raise
        else:
            permit.settle(Verdict.SUCCESS, clock())

    def _settle(self, era: int, verdict: Verdict, now: float) -> None:
        if era != self._era:
            return
        if self.state is State.CLOSED:
            if verdict is not Verdict.NONE:
                self._count(verdict, now)
        elif self.state is State.HALF_OPEN:
            self._probing -= 1
            if verdict is Verdict.FAILURE:
                self._open(now)
            elif verdict is Verdict.SUCCESS:
                self._passed += 1
                if self._passed >= self._config.probes:
                    self._become(State.CLOSED)

    def _count(self, verdict: Verdict, now: float) -> None:
        step = int(now // self._width)
        if not self._steps or self._steps[-1][0] != step:
            self._steps.append([step, 0, 0])
        while self._steps[0][0] <= step - _STEPS:
            _, calls, failures = self._steps.popleft()
            self._calls -= calls
            self._failures -= failures
        failed = verdict is Verdict.FAILURE
        self._steps[-1][1] += 1
        self._steps[-1][2] += failed
        self._calls += 1
        self._failures += failed
        # Checked also after a success, because it may complete ``min_calls``.
        if self._calls >= self._config.min_calls and self._failures >= self._config.failure_rate * self._calls:
            self._open(now)

    def _open(self, now: float) -> None:
        self._until = now + self._config.open_for
        self._become(State.OPEN)

    def _become(self, state: State) -> None:
        calls, failures = self._calls, self._failures
        self.state = state
        self._era += 1
        self._probing = self._passed = 0
        self._steps.clear()
        self._calls = self._failures = 0
        self._told(state, failures, calls)

    def _refuse(self, retry_after: float) -> None:
        raise CircuitOpen(
            f"{self._name} has failed too often of late and is not called"
            + (f" for another {seconds(retry_after)}" if retry_after else " while it is being probed"),
            details={"circuit": self._name, "state": self.state.value, "retry_after": retry_after},
        )
