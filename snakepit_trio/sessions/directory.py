"""The sessions of one runtime: their records in the store, and their state in this process.

A session is *known* here while this process holds something of it: a handle, running calls, bindings to workers, tools.
A use is recorded in memory at once, and reported to the store only now and then, so that a call costs no transaction;
it is always reported before the store would end the session. The directory's task ends sessions when their time has
come, whatever the traffic. It keeps sessions with running calls alive, also against other processes that share the
store.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from snakepit_trio._bulkhead import InternalErrors, operation
from snakepit_trio._interrupts import protected
from snakepit_trio.errors import QuotaExceeded, SnakepitError
from snakepit_trio.observe.events import EventBus

from .records import SessionInfo, check_name, session_not_found
from .store import Store

__all__ = ["KnownSession", "SessionDirectory"]

_log = logging.getLogger(__name__)

#: Seconds between two looks at a store that other processes write to.
_LOOK = 5.0
#: A use within this fraction of the TTL after the last reported one is not reported.
_FINE = 0.05
#: The number of sessions that are ended or reported in one step; the event loop runs other tasks in between.
_BATCH = 200
#: Seconds. The shortest time between two looks at the store.
_SHORTEST = 0.001


class KnownSession:
    """This process's state of one session.

    Attributes:
        id: The id.
        generation: Distinguishes it from other sessions with the same id.
        ttl: Seconds without use after which it expires; None: never.
        ended: The error with which it ended; None while it lives.
        handles: The number of blocks that have it open.
        calls: Its running calls, each with a function that ends it for its caller.
        bindings: Its binding to a worker, by pool.
        affinities: The affinities with which it is open, by pool.
        tools: Its own host tools, if there are any.
        used_at: The time of the last use.
        told_at: The time of the last use that was reported to the store.
    """

    def __init__(self, id: str, generation: str, ttl: float | None, now: float) -> None:
        self.id = id
        self.generation = generation
        self.ttl = ttl
        self.ended: SnakepitError | None = None
        self.handles = 0
        self.calls: dict[object, Callable[[], object]] = {}
        self.bindings: dict[str, Any] = {}
        self.affinities: dict[str, Any] = {}
        self.tools: Any = None
        self.used_at: float = now
        self.told_at: float = now

    def __repr__(self) -> str:
        return f"<KnownSession {self.id!r} handles={self.handles} running={len(self.calls)}>"

    @property
    def expires_at(self) -> float:
        """The time at which it expires if it is not used."""
        return math.inf if self.ttl is None or self.calls else self.used_at + self.ttl

    def end(self, error: SnakepitError) -> None:
        """End the session: end its calls, and release its resources."""
        self.ended = error
        for cancel in list(self.calls.values()):
            cancel()
        self.bindings.clear()
        self.affinities.clear()
        self.tools = None


class SessionDirectory:
    """A runtime's sessions.

    Args:
        store: The store.
        events: The event bus.
    """

    def __init__(self, store: Store, events: EventBus) -> None:
        self._store = store
        self._events = events
        self._known: dict[str, KnownSession] = {}
        # The sessions with unreported uses, or in use.
        self._untold: dict[KnownSession, None] = {}
        # Sessions are created and ended one at a time, because a store may be slow and each operation depends on the
        # state before it.
        self._lock = anyio.Lock(fast_acquire=True)
        self._changed = anyio.Event()
        self._pruned_at = store.clock()
        self._next_look = math.inf

    @property
    def _errors(self) -> InternalErrors:
        return self._events.errors

    def __repr__(self) -> str:
        return f"<SessionDirectory known={len(self._known)}>"

    def __len__(self) -> int:
        """Return the number of known sessions."""
        return len(self._known)

    @property
    def store(self) -> Store:
        """The store."""
        return self._store

    @operation
    async def get(self, id: str) -> SessionInfo:
        """Return a snapshot of a session. Does not count as use.

        A cancellation changes nothing.

        Raises:
            SessionNotFound: There is no session of this id.
        """
        check_name(id, "id")
        return await self.info(id, None)

    @operation
    async def list(self) -> tuple[SessionInfo, ...]:
        """Return snapshots of all sessions, sorted by id.

        A cancellation changes nothing.
        """
        store = self._store
        async with self._lock:
            await self._tell(list(self._untold))
            return tuple(await store.ask(store.tables.sessions, store.clock()))

    @operation
    async def close(self, id: str) -> bool:
        """End a session for all blocks that have it open: cancel its calls, and delete its values, programs and tools.

        Returns whether there was a session. After a cancellation the session has either ended or not.
        """
        check_name(id, "id")
        return await self.end(id, None)

    async def end(self, id: str, generation: str | None) -> bool:
        """End a session as :meth:`close` does; with a generation, only the session of that generation.

        After a cancellation the session has either ended or not.
        """
        async with self._lock:
            # Not shielded: a cancellation is allowed during the wait for the lock, behind operations that a slow store
            # delays.
            try:
                found = await self._store.ask(self._store.tables.remove, id, generation=generation)
            except SnakepitError:
                # The store's record expires by its TTL; here the session has ended.
                self._end(id, generation)
                raise
            self._end(id, generation)
        if found:
            self._events.emit("session.closed", None, session_id=id)
        return found

    # ---- for the pools -----------------------------------------------------------------------------

    def bindings(self, pool: str) -> Iterable[Any]:
        """Return the bindings of all sessions to workers of a pool."""
        return [known.bindings[pool] for known in self._known.values() if pool in known.bindings]

    async def info(self, id: str, generation: str | None) -> SessionInfo:
        """Return a snapshot of a session as :meth:`get` does; with a generation, only of the session of that generation."""
        store = self._store
        async with self._lock:
            await self.tell_of(id)
            found = await store.ask(store.tables.info, id, store.clock())
        if found is None or generation not in (None, found.generation):
            raise session_not_found(id)
        return found

    def known(self, id: str) -> KnownSession | None:
        """Return this process's state of a session, or None."""
        return self._known.get(id)

    @protected
    async def open(
        self,
        id: str,
        ttl: float | None,
        metadata: dict[str, str],
        *,
        generation: str | None = None,
        make: bool = True,
    ) -> KnownSession:
        """Create a session, or resume the session of this id, and hold it open. The caller must call :meth:`leave`.

        Args:
            generation: Accept only the session of this generation.
            make: Whether to create a missing session.

        Raises:
            SessionNotFound: There is no such session, and ``make`` is false.
            QuotaExceeded: There are already ``max_sessions`` sessions.
        """
        store = self._store
        options = {"generation": generation, "make": make}
        async with self._lock:
            await self.tell_of(id)
            try:
                made, life, found = await store.ask(store.tables.open, id, ttl, metadata, store.clock(), **options)
            except QuotaExceeded:
                await self._sweep()
                made, life, found = await store.ask(store.tables.open, id, ttl, metadata, store.clock(), **options)
            known = self._known.get(id)
            if known is not None and known.generation != found:
                # Another process has ended it, or it has just expired: the new session must not get its bindings.
                self._forget(known)
                known = None
            if known is None:
                known = self._known[id] = KnownSession(id, found, life, store.clock())
            known.used_at = known.told_at = store.clock()
            self.look_again()
        if made:
            self._events.emit("session.opened", None, session_id=id)
        # Nothing after this line can fail.
        known.handles += 1
        return known

    @protected
    async def use(self, known: KnownSession) -> None:
        """Record a use of a session.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        now = self._store.clock()
        if known.ended is None and known.expires_at <= now:
            await self._look_up(known)
        if known.ended is None:
            known.used_at = now
            self._note(known)
            life = math.inf if known.ttl is None else known.ttl * _FINE
            if now - known.told_at > (min(life, _LOOK) if self._store.shared else life):
                await self._tell([known])
        if known.ended is not None:
            raise session_not_found(known.id)

    async def tell_of(self, id: str) -> None:
        """Report the last use of a session to the store, before the store is asked for it."""
        known = self._known.get(id)
        if known is not None and known in self._untold:
            await self._tell([known])

    def begin(self, known: KnownSession, call: object, cancel: Callable[[], object]) -> None:
        """Record the begin of a call; ``cancel`` ends it for its caller.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        if known.ended is not None:
            raise session_not_found(known.id)
        known.calls[call] = cancel
        self._note(known)

    def finish(self, known: KnownSession, call: object) -> None:
        """Record the end of a call."""
        if known.calls.pop(call, None) is not None and known.ended is None:
            known.used_at = self._store.clock()
            self._note(known)

    def lost(self, known: KnownSession) -> None:
        """Record that the store no longer has the session."""
        self._forget(known)

    @protected
    async def leave(self, known: KnownSession, *, detach: bool) -> None:
        """Record the end of a block that had the session open."""
        if known.ended is not None or known.handles:
            return
        if not detach:
            await self.end(known.id, known.generation)
        elif known in self._untold:
            await self._tell([known])

    # ---- the clock -----------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Make :meth:`keep` check its next expiry again, because it may be earlier."""
        self._changed.set()

    @protected
    async def sweep(self) -> None:
        """End all expired sessions now."""
        async with self._lock:
            await self._sweep()

    @protected
    async def keep(self) -> None:
        """End sessions when they expire, until cancelled."""
        store = self._store
        stuck = math.nan
        while True:
            self._changed = anyio.Event()
            self._next_look = math.inf
            try:
                due = await store.ask(store.tables.next_expiry)
                # A due entry that remains after everything due was ended is a malformed row.
                wait = _LOOK if due == stuck else due - store.clock()
                if store.shared:
                    # Other processes sweep too, so uses are reported well before they would end a session.
                    lives = [known.ttl for known in self._untold if known.ttl is not None]
                    wait = min([wait, _LOOK, *(life / 3 for life in lives)])
                    self._next_look = store.clock() + wait
                with anyio.move_on_after(max(wait, _SHORTEST)):
                    await self._changed.wait()
                    continue
                # A clock other than the event loop's may not have reached the time yet.
                past = due <= store.clock()
                await self.sweep()
                stuck = due if past else math.nan
            except SnakepitError as exc:
                _log.warning("%s", exc.message)
                await anyio.sleep(_LOOK)

    # ---- inside --------------------------------------------------------------------

    async def _sweep(self) -> None:
        store = self._store
        if store.shared:
            await self._tell(list(self._untold))
            now = store.clock()
            if now - self._pruned_at > _LOOK:
                self._pruned_at = now
                # Nothing reports sessions that other processes have ended.
                await self._tell([known for known in self._known.values() if known.ttl is None])
                for known in [known for known in self._known.values() if known.expires_at <= now]:
                    await self._look_up(known)
        while True:
            now = store.clock()
            due = await store.ask(store.tables.due, now, _BATCH)
            used = [known for known in map(self._known.get, due) if known is not None and known.expires_at > now]
            await self._tell(used)
            in_use = {known.id for known in used if known.ended is None}
            over = [id for id in due if id not in in_use]
            for id in await store.ask(store.tables.expire, over, now):
                self._end(id)
                self._events.emit("session.expired", None, session_id=id)
            if len(due) < _BATCH:
                return
            await anyio.lowlevel.checkpoint()

    def _note(self, known: KnownSession) -> None:
        """Schedule a report of the session's use to the store, in time before another process would end it."""
        if known not in self._untold:
            self._untold[known] = None
            store = self._store
            if store.shared and known.ttl is not None and store.clock() + known.ttl / 3 < self._next_look:
                self.look_again()

    async def _tell(self, sessions: Sequence[KnownSession]) -> None:
        """Report the last uses of these sessions to the store, and end those that it no longer has."""
        now = self._store.clock()
        told = [(known, now if known.calls else known.used_at) for known in sessions]
        for start in range(0, len(told), _BATCH):
            batch = told[start : start + _BATCH]
            uses = [(known.id, known.generation, at) for known, at in batch]
            gone = set(await self._store.ask(self._store.tables.keep, uses))
            for known, at in batch:
                known.told_at = max(known.told_at, at)
                if known.id in gone:
                    self._forget(known)
                elif not known.calls and known.used_at <= at:
                    self._untold.pop(known, None)

    async def _look_up(self, known: KnownSession) -> None:
        """Check a session that has expired as far as is known here, because another process may have used it."""
        found = await self._store.ask(self._store.tables.info, known.id, self._store.clock())
        if found is None or found.generation != known.generation:
            self._forget(known)
            self.look_again()
        else:
            known.used_at = max(known.used_at, found.used_at)

    def _end(self, id: str, generation: str | None = None) -> None:
        known = self._known.get(id)
        if known is not None and generation in (None, known.generation):
            self._forget(known)

    def _forget(self, known: KnownSession) -> None:
        if self._known.get(known.id) is known:
            del self._known[known.id]
        self._untold.pop(known, None)
        known.end(session_not_found(known.id))
