"""The queues in which calls wait for a thread, or for the call before them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import failure

if TYPE_CHECKING:
    from .call import Call

__all__ = ["Line", "Threads"]


class Threads:
    """Long-lived threads that take calls from one queue. They live during the block, and end after the queued calls.

    Args:
        count: The number of threads.
        run: Runs one call; never raises.
    """

    def __init__(self, count: int, run: Callable[[Call], None]) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._run = run
        self._count = count
        self._threads = [threading.Thread(target=self._work, name=f"snakepit-tool-{n}") for n in range(count)]
        self.put: Callable[[Call | None], None] = self._calls.put

    def __enter__(self) -> Threads:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            failure.run(self._run, call)

    def stop(self) -> None:
        """Make them end after the calls that are queued."""
        for _ in range(self._count):
            self._calls.put(None)

    def join(self) -> None:
        """Wait until they have ended."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()


class Line:
    """Calls of any kind that wait for the call before them. Always empty if calls need not wait."""

    def __init__(self, threads: int) -> None:
        self._alone = threads == 1
        self._lock = threading.Lock()
        self._waiting: deque[Call] = deque()
        self._busy = False

    def enter(self, call: Call) -> bool:
        """Return whether this call may run now; if not, :meth:`leave` will return it."""
        if not self._alone:
            return True
        with self._lock:
            if self._busy:
                self._waiting.append(call)
                return False
            self._busy = True
            return True

    def leave(self) -> Call | None:
        """Record the end of a call, and return the next call, which the caller must run."""
        if not self._alone:
            return None
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._busy = False
            return None
