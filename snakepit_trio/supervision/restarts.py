"""When a slot may start its next worker, by how its last ones have ended. No I/O, and no clock of its own.

Theory of operation
-------------------
Two questions are kept apart. *Can workers start at all?* A worker that did not become ready, or that ended soon after
without having begun a call, is a failed start. More of these than ``restart_limit`` in ``restart_window`` seconds, and
the slot has failed: its pauses are long, for there is little hope. That is Erlang's restart intensity:
https://www.erlang.org/doc/system/sup_princ.html#maximum-restart-intensity

*Does it help to start another at once?* A worker that a call has ended says nothing of the next start, so the slot never
fails by it. It is replaced after a pause, so that calls that end their workers don't keep the machine busy with starts.
The pause grows for as long as workers end before they have answered a call, and stays so short that callers who wait in
the queue outlive it.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig

__all__ = ["Restarts"]

#: The longest pause between two attempts of a failed slot, in seconds.
_LONGEST_PAUSE = 300.0
#: The part of ``queue_timeout`` that a pause may take when workers can start: whoever waits outlives several of them.
_SHARE_OF_WAIT = 0.1
#: The same where there is no ``queue_timeout``, in seconds.
_LONGEST_WITHOUT_LIMIT = 1.0
#: The part by which a pause is longer or shorter, so that slots which failed together don't start together.
_JITTER = 0.2


class Restarts:
    """The restarts of one slot.

    Attributes:
        exhausted: Too many starts have failed; the pause until the next attempt is a long one.
    """

    def __init__(self, settings: PoolConfig, rng: random.Random) -> None:
        self.exhausted: bool = False
        self._settings = settings
        self._rng = rng
        #: When workers ended, and when starts failed, within the last ``restart_window`` seconds.
        self._ends: deque[float] = deque()
        self._failed_starts: deque[float] = deque()
        #: Workers in a row that ended before they were of any use.
        self._in_a_row = 0
        #: How often the limit was passed since a worker was up last.
        self._rounds = 0

    def __repr__(self) -> str:
        return f"<Restarts failed={len(self._failed_starts)} in_a_row={self._in_a_row} exhausted={self.exhausted}>"

    def note(self, now: float, *, up_for: float | None, excused: bool, answered: bool, hopeless: bool = False) -> float:
        """A worker has ended that nobody had asked to. Returns how long to wait before the next attempt, in seconds.

        Args:
            now: The event loop's time.
            up_for: How long it had been ready, in seconds; None: it never was.
            excused: Its end says nothing of starts: it had begun a call, or an operator wanted it to end.
            answered: It had answered one.
            hopeless: It has said that no other start will fare better.
        """
        settings = self._settings
        stable = up_for is not None and up_for >= settings.restart_window
        if answered or stable:
            self._in_a_row = 0
        self._in_a_row += 1
        alone = self._note(self._ends, now) == 1
        if excused or stable:
            self.exhausted = False
            self._rounds = 0
            return 0.0 if alone else self._pause(self._longest_while_calls_wait())
        failed = self._note(self._failed_starts, now)
        self.exhausted = settings.restart_limit is not None and (hopeless or failed > settings.restart_limit)
        if self.exhausted:
            self._rounds += 1
            longest = max(settings.backoff_max, settings.restart_window)
            return min(_LONGEST_PAUSE, longest * 2.0 ** min(self._rounds - 1, 60))
        if hopeless:
            return settings.backoff_max
        return 0.0 if alone and up_for is not None else self._pause(settings.backoff_max)

    def _note(self, times: deque[float], now: float) -> int:
        times.append(now)
        while times[0] < now - self._settings.restart_window:
            times.popleft()
        return len(times)

    def _longest_while_calls_wait(self) -> float:
        settings = self._settings
        limit = settings.queue_timeout
        return min(settings.backoff_max, _LONGEST_WITHOUT_LIMIT if limit is None else limit * _SHARE_OF_WAIT)

    def _pause(self, longest: float) -> float:
        pause = min(longest, self._settings.backoff_base * 2.0 ** min(self._in_a_row - 1, 60))
        return pause * (1 + self._rng.uniform(-_JITTER, _JITTER))
