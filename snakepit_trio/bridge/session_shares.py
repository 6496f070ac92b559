"""The number of sessions that one client may open: as many as it leaves for others.

Of the runtime's ``max_sessions`` that is half for a single client, and a third for each of two, as in a pool's queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from snakepit_trio.errors import QuotaExceeded

if TYPE_CHECKING:
    from snakepit_trio.runtime import Runtime
    from snakepit_trio.sessions.directory import KnownSession

__all__ = ["SessionShares"]


class _Share:
    """The sessions that one client has opened, and is opening."""

    __slots__ = ("opened", "opening")

    def __init__(self) -> None:
        self.opened: list[KnownSession] = []
        self.opening = 0


class SessionShares:
    """The shares of one runtime's clients. The sessions of a disconnected client count for all.

    Args:
        runtime: The runtime.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._sessions = runtime.sessions
        self._limit = runtime.config.max_sessions
        self._shares: WeakKeyDictionary[object, _Share] = WeakKeyDictionary()

    @contextmanager
    def opening(self, client: object, id: str | None) -> Iterator[list[KnownSession]]:
        """Count a session that a client opens in the block, by this id or a new one; the block appends the session to the
        list.

        Raises:
            QuotaExceeded: The client's share is used up.
        """
        found: list[KnownSession] = []
        if self._limit is None or (id is not None and self._sessions.known(id) is not None):
            yield found
            return
        share = self._shares.get(client)
        if share is None:
            share = self._shares[client] = _Share()
        self._check(share, self._limit)
        share.opening += 1
        try:
            yield found
        finally:
            share.opening -= 1
            share.opened += found

    def _check(self, share: _Share, limit: int) -> None:
        used = len(self._sessions) + sum(each.opening for each in self._shares.values())
        left = limit - used - 1
        if len(share.opened) + share.opening < left or limit == 1:
            return
        share.opened = [known for known in share.opened if known.ended is None]
        its = len(share.opened) + share.opening
        if its >= left:
            raise QuotaExceeded(
                f"this client has opened {its} sessions, and the {left + 1} places that are left of {limit} (max_sessions) are "
                "for others, too",
                details={"quota": "max_sessions", "limit": limit, "used": used, "asked": 1, "client_used": its},
                retryable=True,
            )
