"""The sessions of one runtime: what the store keeps of them, and what lives only here.

A session is *known* here while this process has something of it: a handle, running calls, its ties to workers, its tools.
The directory's one task ends sessions when their time has come, by the clock and not by traffic; a session with running
calls is kept alive by it, also against other processes that share the store.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import anyio.abc

from snakepit_trio._interrupts import protected
from snakepit_trio.errors import SnakepitError
from snakepit_trio.observe.events import EventBus

from .records import SessionInfo, session_not_found
from .store import Store

__all__ = ["KnownSession", "SessionDirectory"]

_log = logging.getLogger(__name__)

#: A store that others write to is looked at again after so long, in seconds.
_LOOK = 5.0
#: A use within this part of the TTL after the last one is not written down again.
_FINE = 0.05


class KnownSession:
    """What this process has of one session.

    Attributes:
        id: Its id.
        ttl: Seconds that it lives without being used; None: for ever.
        ended: Why it is no more; None while it lives.
        handles: How many blocks have it open.
        running: How many of its calls are under way.
        bindings: Its tie to a worker, by pool.
        tools: Its own host tools, once there are any.
    """

    def __init__(self, id: str, ttl: float | None, now: float) -> None:
        self.id = id
        self.ttl = ttl
        self.ended: SnakepitError | None = None
        self.handles = 0
        self.running = 0
        self.bindings: dict[str, Any] = {}
        self.tools: Any = None
        self.used_at = now
        self._cancels: dict[object, Callable[[SnakepitError], None]] = {}

    def __repr__(self) -> str:
        return f"<KnownSession {self.id!r} handles={self.handles} running={self.running}>"

    @property
    def expires_at(self) -> float:
        """When it expires unless it is used."""
        return math.inf if self.ttl is None or self.running else self.used_at + self.ttl

    def begin(self, call: object, cancel: Callable[[SnakepitError], None]) -> None:
        """A call is under way; ``cancel`` ends it for its caller."""
        self.running += 1
        self._cancels[call] = cancel

    def finish(self, call: object, now: float) -> None:
        """It is over."""
        if self._cancels.pop(call, None) is not None:
            self.running -= 1
            self.used_at = now

    def end(self, error: SnakepitError) -> None:
        """It is no more: its calls end with this error, and what it had is freed."""
        self.ended = error
        for cancel in list(self._cancels.values()):
            cancel(error)
        self.bindings.clear()
        self.tools = None


class SessionDirectory:
    """A runtime's sessions.

    Args:
        store: Where they are kept.
        events: Where their beginnings and ends are told.
    """

    def __init__(self, store: Store, events: EventBus) -> None:
        self._store = store
        self._events = events
        self._known: dict[str, KnownSession] = {}
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        return f"<SessionDirectory known={len(self._known)}>"

    @property
    def store(self) -> Store:
        """Where they are kept."""
        return self._store

    async def get(self, id: str) -> SessionInfo:
        """What there is to say of a session. Does not count as a use.

        Raises:
            SessionNotFound: There is none of that id.
        """
        found = await self._store.ask(self._store.tables.info, id, self._store.clock())
        if found is None:
            raise session_not_found(id)
        return found

    async def list(self) -> tuple[SessionInfo, ...]:
        """All sessions, by id."""
        return tuple(await self._store.ask(self._store.tables.sessions, self._store.clock()))

    async def close(self, id: str) -> bool:
        """End a session, whoever has it open: its calls are cancelled, its values, programs and tools freed.

        Returns whether there was one.
        """
        known = self._known.pop(id, None)
        if known is not None:
            known.end(session_not_found(id))
        found: bool = await self._store.ask(self._store.tables.remove, id)
        if found:
            self._events.emit("session.closed", None, session_id=id)
        return found

    # ---- for the pools -----------------------------------------------------------------------------

    def bindings(self, pool: str) -> Iterable[Any]:
        """The ties of all sessions to workers of a pool."""
        return [known.bindings[pool] for known in self._known.values() if pool in known.bindings]

    def known(self, id: str) -> KnownSession | None:
        """What this process has of a session."""
        return self._known.get(id)

    async def open(self, id: str, ttl: float | None, metadata: dict[str, str]) -> KnownSession:
        """Make a session, or resume the one of that id, and hold it open. The caller closes what it has opened.

        Raises:
            QuotaExceeded: There are as many as may be.
        """
        store = self._store
        made = await store.ask(store.tables.open, id, ttl, metadata, store.clock())
        known = self._known.get(id)
        if made and known is not None:
            # Another process has ended it meanwhile: what was tied to the old one is not the new one's.
            del self._known[id]
            known.end(session_not_found(id))
            known = None
        if known is None:
            if not made:
                info = await store.ask(store.tables.info, id, store.clock())
                ttl = ttl if info is None else info.ttl
            known = self._known.setdefault(id, KnownSession(id, ttl, store.clock()))
        known.used_at = store.clock()
        known.handles += 1
        self._changed.set()
        if made:
            self._events.emit("session.opened", None, session_id=id)
        return known

    async def use(self, known: KnownSession) -> None:
        """The session is about to be used.

        Raises:
            SessionNotFound: It was closed, or has expired.
        """
        store = self._store
        now = store.clock()
        if known.ended is not None:
            raise session_not_found(known.id)
        stale = store.shared and known.ttl is not None and now - known.used_at > known.ttl * _FINE
        if known.expires_at <= now or (stale and not await store.ask(store.tables.touch, known.id, now)):
            await self._drop(known)
            raise session_not_found(known.id)
        known.used_at = now

    async def leave(self, known: KnownSession, *, detach: bool) -> None:
        """A block that had it open has ended."""
        known.handles -= 1
        if not detach and not known.handles and known.ended is None:
            await self.close(known.id)

    async def _drop(self, known: KnownSession) -> None:
        if self._known.get(known.id) is known:
            del self._known[known.id]
        known.end(session_not_found(known.id))
        for id in await self._store.ask(self._store.tables.expire, self._store.clock()):
            self._events.emit("session.expired", None, session_id=id)

    @protected
    async def keep(self) -> None:
        """End what has expired, at the moment it does, for as long as the runtime lives."""
        store = self._store
        while True:
            self._changed = anyio.Event()
            try:
                wait = await store.ask(store.tables.next_expiry) - store.clock()
            except SnakepitError as exc:
                _log.warning("%s", exc.message)
                wait = _LOOK
            if store.shared:
                # Others may sweep at the same moment: what runs here is told to the store well before.
                lives = [known.ttl for known in self._known.values() if known.running and known.ttl is not None]
                wait = min([wait, _LOOK, *(life / 3 for life in lives)])
            with anyio.move_on_after(max(wait, 0.0)):
                await self._changed.wait()
                continue
            try:
                await self._sweep(store.clock())
            except SnakepitError as exc:
                _log.warning("%s", exc.message)
                await anyio.sleep(_LOOK)

    async def _sweep(self, now: float) -> None:
        store = self._store
        due = set(await store.ask(store.tables.due, now))
        if store.shared:
            due.update(id for id, known in self._known.items() if known.running)
        for id in due:
            known = self._known.get(id)
            if known is not None and known.expires_at > now:
                # It was used later than the store has heard, or is in use.
                await store.ask(store.tables.touch, id, now if known.running else known.used_at)
        for id in await store.ask(store.tables.expire, now):
            self._events.emit("session.expired", None, session_id=id)
            gone = self._known.pop(id, None)
            if gone is not None:
                gone.end(session_not_found(id))
