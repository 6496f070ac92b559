"""The processes that an adapter's import has started, as the host sees them: held, registered, and ended."""

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

#: Seconds. The time to end after SIGTERM, and to be gone after SIGKILL.
_GRACE, _GONE = 0.5, 1.0


class Helpers:
    """The helpers of one process that has imported an adapter. Ends them, and the processes that they have started.

    Args:
        parent: The importing process, which leads its own session.
        run_id, pool: Its run, whose id the helpers inherit in their environment, and its pool.
        book: The register of processes.
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
        """Accept the parent's list of helpers, each with its id and start time. The list is untrusted: only processes that
        descend from the parent, or have inherited its run's id, are accepted.
        """
        helpers = [Identity(*pair) for pair in found if len(pair) == 2 and all(type(number) is int for number in pair)]
        family = {*descendants(self._parent)} if helpers else set()
        self._hold(helper for helper in helpers if helper in family or was_given(helper.pid, self._given))

    def look(self) -> None:
        """Find the helpers among the parent's descendants and orphans, while the parent is alive and importing."""
        self._hold(descendants(self._parent))
        self._hold(orphans(self._parent, ("SNAKEPIT_RUN_ID", "SNAKEPIT_WORKER_ID")))

    async def end(self, *, told: bool = True) -> None:
        """End the helpers; their parent has ended. Runs to its end even when cancelled, in bounded time.

        Args:
            told: Whether the parent has listed them. If not, they are looked for in its session.
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
        """Find the processes that they have started since, also those with another parent, in sessions that a helper has
        begun.
        """
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
                continue  # It has ended, or is not a process.
            # From here on the id can't be reused. Check that it was not reused before.
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
