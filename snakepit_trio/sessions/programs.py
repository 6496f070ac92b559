"""Programs: named blobs that a runtime stores for its tools and clients, for data that is sent once and used often."""

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
    """A runtime's programs. A program of a session is visible to that session only, and is deleted with it.

    Args:
        store: The store.
        directory: Ends expired programs.
        ttl: The default seconds until a program expires; None: never.
        events: The event bus.
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
        """Store a program, replacing one of the same name.

        After a cancellation the program is either stored or not.

        Args:
            name: Printable text of up to 256 bytes.
            data: The program's bytes; copied.
            session: The id of the session to which the program belongs; None: a program for all.
            ttl: Seconds until the program expires; None: the runtime's ``program_ttl``.

        Raises:
            QuotaExceeded: The program is too large, or does not fit; nothing was changed.
            SessionNotFound: There is no such session.
            InvalidParameter: An argument is invalid.
        """
        await self._check(name, session)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidParameter(f"data must be bytes, not {type(data).__name__}", details={"path": "data"})
        life = check_ttl(self._ttl if ttl is None else ttl)
        store, data = self._store, bytes(data)
        try:
            await store.ask(store.tables.put_program, session, name, data, life, store.clock())
        except QuotaExceeded:
            # Expired programs still count against the quotas.
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
        """Return a program's bytes, or ``default`` if there is no such program.

        A cancellation changes nothing.
        """
        await self._check(name, session)
        found = await self._store.ask(self._store.tables.program, session, name, self._store.clock())
        return default if found is None else found

    @operation
    async def delete(self, name: str, session: str | None = None) -> bool:
        """Delete a program, and return whether there was one.

        After a cancellation the program is either deleted or not.
        """
        await self._check(name, session)
        found: bool = await self._store.ask(self._store.tables.discard_program, session, name, self._store.clock())
        if found:
            self._events.emit("program.deleted", None, **_names(name, session))
        return found

    @operation
    async def list(self, session: str | None = None) -> tuple[ProgramInfo, ...]:
        """Return the programs of a session, or those for all, sorted by name.

        A cancellation changes nothing.
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
