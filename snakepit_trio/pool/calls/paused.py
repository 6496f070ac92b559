"""Calls that wait outside the queue: for a limit, before their next attempt, or for their session to be rebuilt.

They have no request, so the scheduler does not know them. The causes that end a request end them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio

from snakepit_trio._timeouts import TimeLimit
from snakepit_trio.errors import RequestCancelled, SnakepitError
from snakepit_trio.policies.limits import out_of_time

from ..scheduling.failures import copy_error

__all__ = ["PausedCalls", "session_closed"]


class _Session(Protocol):
    id: str

    def begin(self, call: object, end: Callable[[], object]) -> None: ...
    def finish(self, call: object) -> None: ...


class _Wait:
    """One paused call."""

    __slots__ = ("error", "scope")

    def __init__(self, deadline: float) -> None:
        self.error: SnakepitError | None = None
        self.scope = anyio.CancelScope(deadline=deadline)

    def end(self, error: SnakepitError) -> None:
        """End the wait with an error."""
        if self.error is None:
            self.error = error
            self.scope.cancel()


class PausedCalls:
    """The paused calls of one pool."""

    def __init__(self) -> None:
        self._waits: dict[_Wait, None] = {}
        self._closed: SnakepitError | None = None

    def __repr__(self) -> str:
        return f"<PausedCalls {len(self._waits)}>"

    def __len__(self) -> int:
        return len(self._waits)

    @contextmanager
    def wait(self, tool: str, session: _Session | None, limit: TimeLimit, deadline: float, what: str) -> Iterator[None]:
        """Wait in the block, until the deadline, the end of the session, or the close of the pool. The session does not
        expire meanwhile.

        Args:
            limit: The limit that sets the deadline.
            what: The awaited thing, for the error.

        Raises:
            RequestTimeout: The deadline has passed.
            RequestCancelled: The session was closed.
            SessionNotFound: The session had already been closed, or has expired.
            PoolClosed: The pool is closing or closed.
        """
        if self._closed is not None:
            raise copy_error(self._closed)
        wait = _Wait(deadline)
        if session is not None:
            session.begin(wait, lambda: wait.end(session_closed(session.id, tool)))
        self._waits[wait] = None
        try:
            with wait.scope:
                yield
        finally:
            del self._waits[wait]
            if session is not None:
                session.finish(wait)
        if wait.scope.cancelled_caught:
            raise wait.error or out_of_time(tool, what, limit)

    def close(self, error: SnakepitError) -> None:
        """End all waits with this error, because the pool is closing."""
        self._closed = error
        for wait in list(self._waits):
            wait.end(copy_error(error))


def session_closed(session: str | None, tool: str) -> RequestCancelled:
    """Return the error of a call whose session has been closed."""
    return RequestCancelled(
        f"session {session!r} was closed while {tool!r} was under way", details={"session": session, "tool": tool}
    )
