"""Decides when a slot may start its next worker, from the ends of its last ones. No I/O, and no clock of its own.

Theory of operation ------------------- Two questions are separate. *Can workers start at all?* A worker that did not
become ready, or ended soon after without having begun a call, is a failed start. After more than ``restart_limit``
failed starts in ``restart_window`` seconds the slot has failed, and its pauses are long. That is Erlang's restart
intensity: https://www.erlang.org/doc/system/sup_princ.html#maximum-restart-intensity

*Does it help to start another worker at once?* The end of a worker by a call says nothing about the next start, so the
slot never fails because of it. The worker is replaced after a pause, so that such calls don't keep the machine busy
with starts. The pause grows while workers end before they have answered a call, and stays short enough for callers who
wait in the queue.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig

__all__ = ["Restarts"]

#: Seconds. The longest pause between two attempts of a failed slot.
_LONGEST_PAUSE = 300.0
#: The share of ``queue_timeout`` that a pause may take if workers can start, so that a waiting call outlives several
#: pauses.
_SHARE_OF_WAIT = 0.1
#: Seconds. The longest such pause without a ``queue_timeout``.
_LONGEST_WITHOUT_LIMIT = 1.0
#: The random variation of a pause, so that slots that failed together don't start together.
_JITTER = 0.2


class Restarts:
    """The restarts of one slot.

    Attributes:
        exhausted: Whether too many starts have failed; the pause until the next attempt is then long.
    """

    def __init__(self, settings: PoolConfig, rng: random.Random) -> None:
        self.exhausted: bool = False
        self._settings = settings
        self._rng = rng
        #: The times of ends, and of failed starts, within the last ``restart_window`` seconds.
        self._ends: deque[float] = deque()
        self._failed_starts: deque[float] = deque()
        #: The number of consecutive workers that ended before they had answered a call.
        self._in_a_row = 0
        #: The number of times the limit was exceeded since a worker was last ready.
        self._rounds = 0

    def __repr__(self) -> str:
        return f"<Restarts failed={len(self._failed_starts)} in_a_row={self._in_a_row} exhausted={self.exhausted}>"

    def note(self, now: float, *, up_for: float | None, excused: bool, answered: bool, hopeless: bool = False) -> float:
        """Record an unexpected exit, and return the seconds until the next attempt.

        Args:
            now: The event loop's time.
            up_for: The seconds for which the worker had been ready; None: never.
            excused: Its end says nothing about starts: it had begun a call, or an operator ended it.
            answered: It had answered a call.
            hopeless: It has reported that another start would fail too.
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
