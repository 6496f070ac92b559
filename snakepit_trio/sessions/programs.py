"""Named blobs that a runtime keeps for its tools and clients: models, scripts, whatever is sent once and used often."""

from __future__ import annotations

from typing import Any, overload

from snakepit_trio.errors import InvalidParameter
from snakepit_trio.observe.events import EventBus

from .records import ProgramInfo, check_name
from .store import Store

__all__ = ["ProgramStore"]


class ProgramStore:
    """A runtime's programs. Those of a session are for that session, and go with it.

    Args:
        store: Where they are kept.
        ttl: How long one lives that is stored without a word about it, in seconds; None: for ever.
        events: Where changes are told.
    """

    def __init__(self, store: Store, ttl: float | None, events: EventBus) -> None:
        self._store = store
        self._events = events
        self._ttl = ttl

    async def put(self, name: str, data: bytes, *, session: str | None = None, ttl: float | None = None) -> None:
        """Store a program, in the place of one of that name.

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
        check_name(name, "name")
        if session is not None:
            check_name(session, "session")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidParameter(f"data must be bytes, not {type(data).__name__}", details={"path": "data"})
        if ttl is not None and not (isinstance(ttl, int | float) and ttl > 0):
            raise InvalidParameter(f"ttl must be a positive number of seconds, not {ttl!r}", details={"path": "ttl"})
        store = self._store
        life = self._ttl if ttl is None else ttl
        kept = bytes(data)
        await store.ask(store.tables.put_program, session, name, kept, life, store.clock())
        self._events.emit("program.stored", {"size": len(kept)}, **_names(name, session))

    @overload
    async def get(self, name: str, *, session: str | None = None) -> bytes | None: ...
    @overload
    async def get(self, name: str, *, session: str | None = None, default: Any) -> Any: ...
    async def get(self, name: str, *, session: str | None = None, default: Any = None) -> Any:
        """A program's bytes; ``default`` when there is none."""
        found = await self._store.ask(self._store.tables.program, session, name, self._store.clock())
        return default if found is None else found

    async def delete(self, name: str, *, session: str | None = None) -> bool:
        """Delete a program. Returns whether there was one."""
        found: bool = await self._store.ask(self._store.tables.discard_program, session, name, self._store.clock())
        if found:
            self._events.emit("program.deleted", None, **_names(name, session))
        return found

    async def list(self, *, session: str | None = None) -> tuple[ProgramInfo, ...]:
        """The programs that belong to a session, or to none, by name."""
        return tuple(await self._store.ask(self._store.tables.programs, session, self._store.clock()))


def _names(name: str, session: str | None) -> dict[str, str]:
    return {"program": name} if session is None else {"program": name, "session_id": session}
