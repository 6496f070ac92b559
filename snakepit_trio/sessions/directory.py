"""The sessions of one runtime: what the store keeps of them, and what lives only here.

A session is *known* here while this process has something of it: a handle, running calls, its ties to workers, its tools.
A use is written down here at once, and *told* to the store only now and then, so that a call costs no transaction; before
the store would end a session, it is told. The directory's one task ends sessions when their time has come, by the clock
and not by traffic; a session with running calls is kept alive by it, also against other processes that share the store.
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

#: A store that others write to is looked at again after so long, in seconds.
_LOOK = 5.0
#: A use within this part of the TTL after the last one is not told to the store.
_FINE = 0.05
#: How many sessions are ended or told of in one step: the event loop gets its turn in between.
_BATCH = 200
#: Two looks at the store are at least so long apart, in seconds.
_SHORTEST = 0.001


class KnownSession:
    """What this process has of one session.

    Attributes:
        id: Its id.
        generation: Tells it from other sessions of that id.
        ttl: Seconds that it lives without being used; None: for ever.
        ended: Why it is no more; None while it lives.
        handles: How many blocks have it open.
        calls: Its calls that are under way, and what ends each for its caller.
        bindings: Its tie to a worker, by pool.
        affinities: With which it is open, by pool.
        tools: Its own host tools, once there are any.
        used_at: When it was last used.
        told_at: The last use that the store has heard of.
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
        """When it expires unless it is used."""
        return math.inf if self.ttl is None or self.calls else self.used_at + self.ttl

    def end(self, error: SnakepitError) -> None:
        """It is no more: its calls end, and what it had is freed."""
        self.ended = error
        for cancel in list(self.calls.values()):
            cancel()
        self.bindings.clear()
        self.affinities.clear()
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
        # Those of whose last use the store has not heard, or which are in use.
        self._untold: dict[KnownSession, None] = {}
        # Whatever makes or ends sessions does so one at a time: a store may be slow, and each looks at what is there first.
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
        """How many this process has something of."""
        return len(self._known)

    @property
    def store(self) -> Store:
        """Where they are kept."""
        return self._store

    @operation
    async def get(self, id: str) -> SessionInfo:
        """What there is to say of a session. Does not count as a use.

        A cancellation leaves everything as it is.

        Raises:
            SessionNotFound: There is none of that id.
        """
        check_name(id, "id")
        return await self.info(id, None)

    @operation
    async def list(self) -> tuple[SessionInfo, ...]:
        """All sessions, by id.

        A cancellation leaves everything as it is.
        """
        store = self._store
        async with self._lock:
            await self._tell(list(self._untold))
            return tuple(await store.ask(store.tables.sessions, store.clock()))

    @operation
    async def close(self, id: str) -> bool:
        """End a session, whoever has it open: its calls are cancelled, its values, programs and tools freed.

        Returns whether there was one. A cancellation comes before it or after it.
        """
        check_name(id, "id")
        return await self.end(id, None)

    async def end(self, id: str, generation: str | None) -> bool:
        """The same; with a generation, only if the session of that id is of that generation."""
        async with self._lock:
            # No shield: a cancellation may come while it waits for its turn, behind others that a slow store holds up.
            try:
                found = await self._store.ask(self._store.tables.remove, id, generation=generation)
            except SnakepitError:
                # The store's copy goes with its TTL; here it is over.
                self._end(id, generation)
                raise
            self._end(id, generation)
        if found:
            self._events.emit("session.closed", None, session_id=id)
        return found

    # ---- for the pools -----------------------------------------------------------------------------

    def bindings(self, pool: str) -> Iterable[Any]:
        """The ties of all sessions to workers of a pool."""
        return [known.bindings[pool] for known in self._known.values() if pool in known.bindings]

    async def info(self, id: str, generation: str | None) -> SessionInfo:
        """What :meth:`get` tells; with a generation, of the session of that generation alone."""
        store = self._store
        async with self._lock:
            await self.tell_of(id)
            found = await store.ask(store.tables.info, id, store.clock())
        if found is None or generation not in (None, found.generation):
            raise session_not_found(id)
        return found

    def known(self, id: str) -> KnownSession | None:
        """What this process has of a session."""
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
        """Make a session, or resume the one of that id, and hold it open. The caller takes its handle back, and leaves it.

        Args:
            generation: Only the session of this generation is meant.
            make: Whether one is made when there is none.

        Raises:
            SessionNotFound: There is none, and it is not to be made.
            QuotaExceeded: There are as many as may be.
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
                # Another process has ended it meanwhile, or it has just expired: its ties are not the new one's.
                self._forget(known)
                known = None
            if known is None:
                known = self._known[id] = KnownSession(id, found, life, store.clock())
            known.used_at = known.told_at = store.clock()
            self.look_again()
        if made:
            self._events.emit("session.opened", None, session_id=id)
        # Nothing that may fail comes after it.
        known.handles += 1
        return known

    @protected
    async def use(self, known: KnownSession) -> None:
        """The session is about to be used.

        Raises:
            SessionNotFound: It was closed, or has expired.
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
        """Let the store hear of the last use of a session, before it is asked whether that is there."""
        known = self._known.get(id)
        if known is not None and known in self._untold:
            await self._tell([known])

    def begin(self, known: KnownSession, call: object, cancel: Callable[[], object]) -> None:
        """A call is under way; ``cancel`` ends it for its caller.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        if known.ended is not None:
            raise session_not_found(known.id)
        known.calls[call] = cancel
        self._note(known)

    def finish(self, known: KnownSession, call: object) -> None:
        """It is over."""
        if known.calls.pop(call, None) is not None and known.ended is None:
            known.used_at = self._store.clock()
            self._note(known)

    def lost(self, known: KnownSession) -> None:
        """The store has it no more."""
        self._forget(known)

    @protected
    async def leave(self, known: KnownSession, *, detach: bool) -> None:
        """A block that had it open has ended, and is not counted any more."""
        if known.ended is not None or known.handles:
            return
        if not detach:
            await self.end(known.id, known.generation)
        elif known in self._untold:
            await self._tell([known])

    # ---- the clock -----------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Something may expire earlier than was thought."""
        self._changed.set()

    @protected
    async def sweep(self) -> None:
        """End what has expired, now."""
        async with self._lock:
            await self._sweep()

    @protected
    async def keep(self) -> None:
        """End what has expired, at the moment it does, for as long as the runtime lives."""
        store = self._store
        stuck = math.nan
        while True:
            self._changed = anyio.Event()
            self._next_look = math.inf
            try:
                due = await store.ask(store.tables.next_expiry)
                # What stands there though everything that is due was ended just now is a row that makes no sense.
                wait = _LOOK if due == stuck else due - store.clock()
                if store.shared:
                    # Others sweep too: they hear of what is used here well before they would end it.
                    lives = [known.ttl for known in self._untold if known.ttl is not None]
                    wait = min([wait, _LOOK, *(life / 3 for life in lives)])
                    self._next_look = store.clock() + wait
                with anyio.move_on_after(max(wait, _SHORTEST)):
                    await self._changed.wait()
                    continue
                # A clock that is not the event loop's may not be there yet.
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
                # Nobody tells of what others have ended.
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
        """It is in use: the store has to hear of it, and where others sweep too, well before they would end it."""
        if known not in self._untold:
            self._untold[known] = None
            store = self._store
            if store.shared and known.ttl is not None and store.clock() + known.ttl / 3 < self._next_look:
                self.look_again()

    async def _tell(self, sessions: Sequence[KnownSession]) -> None:
        """Let the store hear when these were last used; those that it has no more are at their end."""
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
        """It has expired as far as is known here; somebody else may have used it."""
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
