"""An event loop for I/O that the main thread drives itself, relieved by a second thread.

A sync tool that takes microseconds would pay many times its own cost for two switches between an I/O thread and a tool
thread. So the main thread does both in turn: it drives the loop (:meth:`SharedLoop.step`) until calls have arrived,
runs them, writes the replies, and drives the loop again. Between :meth:`SharedLoop.leave` and
:meth:`SharedLoop.come_back` it runs user code. When that takes longer than :data:`PATIENCE`, the relief thread drives
the loop until the main thread is back, so that heartbeats, cancellations and credits are handled whatever a tool does.

The state of both threads is three things:

- The *baton*, a lock: its holder may drive the loop. A tool never runs inside an iteration of the loop, so iterations
  never nest, and the loop does not depend on which thread runs the next one.
- The owner's *crossings* between the loop and user code, a count that only the owner writes: odd while the owner is in
  user code. The relief thread takes the baton only then, and gives it back once the count is even. It takes the baton
  when the count has not changed for :data:`PATIENCE`.
- Whether the relief thread is *parked*, so that it costs nothing while no tool runs. Each thread first writes its own
  action and then reads the other's (the owner crosses, then checks for a parked thread; the relief thread marks itself
  as parked, then checks for a crossing), so one of them notices.

tests/property/test_shared_loop.py runs this code in every interleaving of its steps.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from asyncio import tasks
from collections.abc import Callable, Coroutine
from typing import Any

from snakepit_trio import _private_names

from . import failure

_private_names.require("asyncio")
from asyncio import _get_running_loop, _set_running_loop  # noqa: E402 - only now is it known that they are there

__all__ = ["PATIENCE", "SharedLoop"]

#: Since Python 3.14 a thread has one current task, whatever loops it runs, and it has to be set aside with its loop.
_SWAP: Callable[[asyncio.AbstractEventLoop, Any], Any] | None = getattr(tasks, "_swap_current_task", None)

#: Seconds. The time for which user code may run before the relief thread drives the loop.
PATIENCE = 0.005


class _Loop(asyncio.SelectorEventLoop):
    """asyncio's own loop, driven one iteration at a time."""

    def step(self) -> None:
        """Run ready callbacks, or wait until there are some."""
        self._run_once()  # type: ignore[attr-defined]


class SharedLoop:
    """The loop as its owner sees it: the thread that creates it, and drives it except during user code.

    Args:
        on_turn: Called before the loop is driven during user code, to send the user code's frames.
        on_relief: Called after it, when the loop will be driven that way for a while.

    Attributes:
        loop: The event loop.
        in_user_code: Whether the loop is driven during user code, or in a wait of it.
    """

    def __init__(self, on_turn: Callable[[], None], on_relief: Callable[[], None]) -> None:
        # Python's development mode is for user code; asyncio would log its findings from here, through user code's
        # handlers.
        self._runner = asyncio.Runner(debug=False, loop_factory=_Loop)
        loop = self._runner.get_loop()
        assert isinstance(loop, _Loop)
        self.loop = loop
        self._on_turn = on_turn
        self._on_relief = on_relief
        self.in_user_code: bool = False
        self._owner = threading.get_ident()
        self._baton = threading.Lock()
        self._baton.acquire()
        self._crossings = 0
        self._parked = False
        #: Signals to the relief thread: True to take over at once, False to check, None to end.
        self._signals: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        self._relief = threading.Thread(target=failure.run, args=[self._relieve], name="snakepit-io")
        self._task: asyncio.Task[None] | None = None

    # ---- the owner ---------------------------------------------------------------------------------

    def start(self, main: Coroutine[Any, Any, None], until: Callable[[], bool]) -> None:
        """Start this coroutine and drive the loop until the condition holds.

        Raises:
            BaseException: An exception of the coroutine before that.
        """
        self._relief.start()
        _set_running_loop(self.loop)
        task = self.loop.create_task(main)
        while not until():
            self.loop.step()
            if task.done():
                task.result()
        self._task = task

    def step(self) -> None:
        """Run one iteration of the loop: wait until something is ready, and run it."""
        self.loop.step()

    def look(self) -> None:
        """Run one iteration of the loop without waiting."""
        self.loop.call_soon(_nothing)
        self.loop.step()

    def leave(self) -> None:
        """Mark the begin of user code in this thread."""
        _set_running_loop(None)
        self._crossings += 1
        self._baton.release()
        if self._parked:
            self._parked = False
            self._signals.put(False)

    def come_back(self) -> None:
        """Mark the end of user code, or a wait of it for something that the loop brings: this thread drives the loop
        again.
        """
        self._crossings += 1
        if not self._baton.acquire(blocking=False):
            # The relief thread may be waiting in the loop.
            self.loop.call_soon_threadsafe(_nothing)
            self._baton.acquire()
        _set_running_loop(self.loop)

    def wait(self, condition: Callable[[], bool], until: float | None) -> None:
        """In user code, drive the loop until the condition holds, or ``time.monotonic()`` has reached ``until``."""
        with _Aside():
            self._wait(condition, until)

    def _wait(self, condition: Callable[[], bool], until: float | None) -> None:
        self.come_back()
        timer = None if until is None else self.loop.call_at(until, _nothing)
        self.in_user_code = True
        try:
            self._on_turn()
            self._on_relief()
            while not condition() and (until is None or self.loop.time() < until):
                self.loop.step()
        finally:
            self.in_user_code = False
            if timer is not None:
                timer.cancel()
            self.leave()

    def close(self) -> None:
        """Drive the loop until its coroutine has ended, join the relief thread, and close the loop."""
        if self._relief.ident is not None:
            try:
                while self._task is not None and not self._task.done():
                    self.loop.step()
            finally:
                self._signals.put(None)
                self._relief.join()
        _set_running_loop(None)
        self._runner.close()
        if self._task is not None:
            self._task.result()

    def turn(self) -> None:
        """In user code, run one iteration of the loop without waiting, unless the relief thread is driving it."""
        if self._baton.acquire(blocking=False):
            try:
                with _Aside():
                    _set_running_loop(self.loop)
                    self._on_turn()
                    self.look()
            finally:
                self._baton.release()

    # ---- any thread --------------------------------------------------------------------------------

    def is_owner(self) -> bool:
        """Return whether this is the thread that drives the loop when no user code runs."""
        return threading.get_ident() == self._owner

    def poke(self, callback: Callable[[], None]) -> None:
        """Make the loop run this callback soon, or ``on_turn`` in its place. From any thread.

        Frames of the owner's own user code wait until it is back or relieved; ``on_turn`` is called then.
        """
        if not self.is_owner():
            self.loop.call_soon_threadsafe(callback)
            if self._away and not self.in_user_code:
                self._signals.put(True)
        elif not self._away:
            self.loop.call_soon(callback)
        elif self.in_user_code:
            self.loop.call_soon_threadsafe(callback)

    # ---- the relief thread -------------------------------------------------------------------------

    @property
    def _away(self) -> bool:
        return self._crossings % 2 == 1

    def _relieve(self) -> None:
        while True:
            crossings = self._crossings
            try:
                signal = self._signals.get(timeout=PATIENCE)
            except queue.Empty:
                if crossings != self._crossings:
                    continue
                # The count has not changed: either the same user code still runs, or none does.
                signal = self._away or self._park()
            if signal is None:
                return
            if signal and self._away and self._baton.acquire(blocking=False):
                self._drive()

    def _park(self) -> bool | None:
        """Wait for the next user code, or another reason to check."""
        self._parked = True
        try:
            return False if self._away else self._signals.get()
        finally:
            self._parked = False

    def _drive(self) -> None:
        _set_running_loop(self.loop)
        self.in_user_code = True
        try:
            self._on_turn()
            self._on_relief()
            while self._away:
                self.loop.step()
        finally:
            self.in_user_code = False
            _set_running_loop(None)
            self._baton.release()


class _Aside:
    """A block in which this thread's running loop, if user code is in the middle of one, is set aside."""

    def __enter__(self) -> None:
        self._loop = _get_running_loop()
        if self._loop is not None and _SWAP is not None:
            self._task = _SWAP(self._loop, None)

    def __exit__(self, *exc: object) -> None:
        _set_running_loop(self._loop)
        if self._loop is not None and _SWAP is not None:
            _SWAP(self._loop, self._task)


def _nothing() -> None:
    """A callback for a loop that should not wait."""
