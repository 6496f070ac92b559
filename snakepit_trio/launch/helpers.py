"""The processes that an adapter's import has started, as the host sees them: held, written down, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence

import anyio

from snakepit_trio import _platform
from snakepit_trio._platform import Identity, ProcessHandle, descendants, in_sessions, orphans, was_given

from .base import ProcessBook

__all__ = ["Helpers"]

#: How long they may take to end after a SIGTERM, and to be gone after a SIGKILL, in seconds.
_GRACE, _GONE = 0.5, 1.0


class Helpers:
    """The helpers of one process that has imported an adapter. Ends them, and what they have started.

    Args:
        parent: That process, which leads a session of its own.
        run_id, pool: Its run, whose id it has in its environment and gives to them, and its pool.
        book: Where they are written down.
    """

    def __init__(self, parent: int, *, run_id: str, pool: str, book: ProcessBook) -> None:
        self._parent = parent
        self._given = f"SNAKEPIT_RUN_ID={run_id}"
        self._pool = pool
        self._book = book
        self._held: dict[Identity, ProcessHandle] = {}
        self._sessions: set[int] = {parent}

    def __repr__(self) -> str:
        return f"<Helpers of {self._parent}: {[helper.pid for helper in self._held]}>"

    def __len__(self) -> int:
        return len(self._held)

    def told(self, found: Iterable[Sequence[int]]) -> None:
        """The parent says that these are helpers, each as its id and its start time. Its code may say anything: taken for one
        is only what descends from it, or has its run's id from it."""
        helpers = [Identity(*pair) for pair in found if len(pair) == 2 and all(type(number) is int for number in pair)]
        family = {*descendants(self._parent)} if helpers else set()
        self._hold(helper for helper in helpers if helper in family or was_given(helper.pid, self._given))

    def look(self) -> None:
        """Find them while their parent is alive and imports still: they are its descendants, or orphans of its."""
        self._hold(descendants(self._parent))
        self._hold(orphans(self._parent, ("SNAKEPIT_RUN_ID", "SNAKEPIT_WORKER_ID")))

    async def end(self, *, told: bool = True) -> None:
        """End them; their parent has ended. Runs to its end even when cancelled, a moment later at most.

        Args:
            told: The parent has said which they are. If it has not, they are looked for in its session.
        """
        if not self._held and told:
            return
        with anyio.CancelScope(shield=True):
            for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GONE)):
                self._find_more()
                for process in self._held.values():
                    with contextlib.suppress(OSError):
                        process.send_signal(number)
                with anyio.move_on_after(seconds):
                    for process in self._held.values():
                        await process.wait()
        for helper, process in self._held.items():
            self._book.ended(_name(helper))
            process.close()
        self._held.clear()

    def _find_more(self) -> None:
        """What they have started since; also what has another parent by now, in a session that one of them has begun."""
        for helper in list(self._held):
            self._hold(descendants(helper.pid))
        self._hold(in_sessions(self._sessions, self._given))

    def _hold(self, found: Iterable[Identity]) -> None:
        for helper in found:
            if helper in self._held:
                continue
            try:
                process = _platform.open_process(helper.pid)
            except (OSError, OverflowError):
                continue  # It has ended, or is none.
            # From here on the id means no other process. Did it before?
            if not _platform.is_same(helper):
                process.close()
                continue
            self._held[helper] = process
            with contextlib.suppress(OSError):
                if os.getsid(helper.pid) == helper.pid:
                    self._sessions.add(helper.pid)
            self._book.reserve(_name(helper), "helper", self._pool)
            self._book.begun(_name(helper), helper.pid)


def _name(helper: Identity) -> str:
    return f"helper-{helper.pid}-{helper.started}"
