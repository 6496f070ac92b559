"""Runs an adapter without async parts, one call at a time: the main thread does the I/O and runs the tools."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .runners import WithoutLoop
from .shared_loop import SharedLoop

if TYPE_CHECKING:
    from .call import Call

__all__ = ["MainThreadRunner"]

#: Seconds. The longest wait of a reply for the next one; a tool whose last run took longer is not waited for.
_TOGETHER = 0.0005


class MainThreadRunner(WithoutLoop):
    """The runner of most workers; see :mod:`.shared_loop`.

    Calls that arrive together run one after the other and are answered together, as long as they are short.

    Attributes:
        shared: The loop that the main thread drives between calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared: SharedLoop = SharedLoop(lambda: self.flush(), lambda: self.sweep())
        #: Writes waiting frames, and ends calls that have waited too long; set by the exchange.
        self.flush: Callable[[], None] = lambda: None
        self.sweep: Callable[[], None] = lambda: None
        self._line: deque[Call] = deque()
        self._stopping = False
        self.submit: Callable[[Call], None] = self._line.append

    def stop(self) -> None:
        self._stopping = True

    def main(self, before: Callable[[], Any], ready: Callable[[], None], after: Callable[[], Any]) -> None:
        before()
        self.set_up()
        try:
            ready()
            self._work()
        finally:
            self.shared.leave()
            try:
                after()
            finally:
                self.shared.come_back()

    def _work(self) -> None:
        shared, line = self.shared, self._line
        clock, run_sync = time.monotonic, self.run_sync
        step, leave, come_back = shared.step, shared.leave, shared.come_back
        while not self._stopping or line:
            step()
            written = begun = clock()
            while line:
                call = line.popleft()
                if call.tool.options.inline:
                    run_sync(call)
                else:
                    leave()
                    try:
                        run_sync(call)
                    finally:
                        come_back()
                ended = clock()
                call.tool.took = ended - begun
                if line and ended - written + line[0].tool.took > _TOGETHER:
                    self.flush()
                    # The next call may be long, or the last one was: this reply does not wait for it, and messages that
                    # have arrived meanwhile may cancel it.
                    shared.look()
                    written = begun = clock()
                else:
                    begun = ended
            self.flush()
