"""Named blobs that a runtime keeps for its tools and clients: models, scripts, whatever is sent once and used often."""

from __future__ import annotations

from typing import Any, overload

from snakepit_trio._bulkhead import InternalErrors, operation
from snakepit_trio.errors import InvalidParameter, QuotaExceeded
from snakepit_trio.observe.events import EventBus

from .directory import SessionDirectory
from .records import ProgramInfo, check_name, check_ttl
from .store import Store

__all__ = ["ProgramStore"]


class ProgramStore:
    """A runtime's programs. Those of a session are for that session, and go with it.

    Args:
        store: Where they are kept.
        directory: Ends what has expired.
        ttl: How long one lives that is stored without a word about it, in seconds; None: for ever.
        events: Where changes are told.
    """

    def __init__(self, store: Store, directory: SessionDirectory, ttl: float | None, events: EventBus) -> None:
        self._store = store
        self._events = events
        self._directory = directory
        self._ttl = ttl

    @property
    def _errors(self) -> InternalErrors:
        return self._events.errors

    def __repr__(self) -> str:
        return f"<ProgramStore ttl={self._ttl}>"

    @operation
    async def put(self, name: str, data: bytes, session: str | None = None, ttl: float | None = None) -> None:
        """Store a program, in the place of one of that name.

        A cancellation comes before it, and nothing is stored, or after it.

        Args:
            name: Printable text of up to 256 bytes.
            data: Its bytes; copied.
            session: The session that it belongs to; None: all.
            ttl: Seconds until it is gone; None: the runtime's ``program_ttl``.

        Raises:
            QuotaExceeded: It is too large, or does not fit; nothing was changed.
            SessionNotFound: There is no such session.
            InvalidParameter: An argument is refused.
        """
        await self._check(name, session)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidParameter(f"data must be bytes, not {type(data).__name__}", details={"path": "data"})
        life = check_ttl(self._ttl if ttl is None else ttl)
        store, data = self._store, bytes(data)
        try:
            await store.ask(store.tables.put_program, session, name, data, life, store.clock())
        except QuotaExceeded:
            # What has expired may still be in its way.
            await self._directory.sweep()
            await store.ask(store.tables.put_program, session, name, data, life, store.clock())
        self._directory.look_again()
        self._events.emit("program.stored", {"size": len(data)}, **_names(name, session))

    @overload
    async def get(self, name: str, session: str | None = None) -> bytes | None: ...
    @overload
    async def get(self, name: str, session: str | None = None, *, default: Any) -> Any: ...
    @operation
    async def get(self, name: str, session: str | None = None, *, default: Any = None) -> Any:
        """A program's bytes; ``default`` when there is none.

        A cancellation leaves everything as it is.
        """
        await self._check(name, session)
        found = await self._store.ask(self._store.tables.program, session, name, self._store.clock())
        return default if found is None else found

    @operation
    async def delete(self, name: str, session: str | None = None) -> bool:
        """Delete a program. Returns whether there was one.

        A cancellation comes before it, and nothing is deleted, or after it.
        """
        await self._check(name, session)
        found: bool = await self._store.ask(self._store.tables.discard_program, session, name, self._store.clock())
        if found:
            self._events.emit("program.deleted", None, **_names(name, session))
        return found

    @operation
    async def list(self, session: str | None = None) -> tuple[ProgramInfo, ...]:
        """The programs that belong to a session, or to none, by name.

        A cancellation leaves everything as it is.
        """
        if session is not None:
            check_name(session, "session")
            await self._directory.tell_of(session)
        return tuple(await self._store.ask(self._store.tables.programs, session, self._store.clock()))

    async def _check(self, name: str, session: str | None) -> None:
        check_name(name, "name")
        if session is not None:
            check_name(session, "session")
            await self._directory.tell_of(session)


def _names(name: str, session: str | None) -> dict[str, str]:
    return {"program": name} if session is None else {"program": name, "session_id": session}
