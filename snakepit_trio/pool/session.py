"""A session as its users see it: calls tied to a worker, values, tools, all of which end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio

from snakepit_trio.errors import InvalidParameter, QuotaExceeded, SessionWorkerUnavailable, SnakepitError
from snakepit_trio.sessions.records import SessionInfo, check_name
from snakepit_trio.tools.registry import ToolRegistry
from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import MSGPACK, Payload

from .ledger import Binding, Request

if TYPE_CHECKING:
    from snakepit_trio.sessions.directory import KnownSession, SessionDirectory

    from .pool import Pool
    from .streams import ChunkStream

__all__ = ["AFFINITIES", "OnLost", "Session"]

AFFINITIES = ("hint", "strict_queue", "strict_fail_fast")
#: What becomes of a strict session whose worker has died.
OnLost = str | Callable[["Session"], Awaitable[object]]
#: Values are stored in one piece.
_ONE_PIECE: Final = 1 << 62


class Session:
    """A session of one pool. Made by :meth:`snakepit_trio.Pool.session`.

    Attributes:
        id: Its id, by which it can be resumed.
        pool: The pool that its calls go to.
        affinity: How its calls are tied to a worker.
    """

    def __init__(
        self, pool: Pool, directory: SessionDirectory, known: KnownSession, *, affinity: str, on_lost: OnLost
    ) -> None:
        self.id: str = known.id
        self.pool = pool
        self.affinity = affinity
        self._directory = directory
        self._known = known
        self._on_lost = on_lost
        self._rebinding = anyio.Lock()
        self._calls: dict[Request, None] = {}

    def __repr__(self) -> str:
        state = "ended" if self._known.ended is not None else "open"
        return f"<Session {self.id!r} {state} of pool {self.pool.name!r} running={len(self._calls)}>"

    @property
    def ttl(self) -> float | None:
        """Seconds that it lives without being used; None: for ever."""
        return self._known.ttl

    @property
    def worker_id(self) -> str | None:
        """The worker that it is tied to, once there is one."""
        binding = self._known.bindings.get(self.pool.name)
        if binding is None or binding.seats is None or binding.lost:
            return None
        found: str = binding.seats.port.worker.id
        return found

    @property
    def tools(self) -> ToolRegistry:
        """Host tools that only this session's calls can call; they go before the runtime's, and end with the session."""
        if self._known.tools is None:
            self._known.tools = ToolRegistry()
        found: ToolRegistry = self._known.tools
        return found

    # ---- calls -----------------------------------------------------------------------------------

    async def execute(self, tool: str, params: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run a tool in the session's worker; the rest is as in :meth:`snakepit_trio.Pool.execute`.

        Raises:
            SessionNotFound: The session was closed, or has expired.
            SessionWorkerUnavailable: The affinity is strict, and the worker is gone.
            WorkerBusy: The affinity is ``"strict_fail_fast"``, and the worker is busy.
            RequestCancelled: The session was closed while the call was under way.
        """
        binding = await self._bind()
        return await self.pool._execute(tool, params, session=self, binding=binding, **options)

    def stream(
        self, tool: str, params: Mapping[str, Any] | None = None, **options: Any
    ) -> AbstractAsyncContextManager[ChunkStream]:
        """Run a streaming tool in the session's worker; the rest is as in :meth:`snakepit_trio.Pool.stream`."""
        return self._stream(tool, params, options)

    @asynccontextmanager
    async def _stream(
        self, tool: str, params: Mapping[str, Any] | None, options: dict[str, Any]
    ) -> AsyncIterator[ChunkStream]:
        binding = await self._bind()
        async with self.pool._stream(tool, params, session=self, binding=binding, **options) as chunks:
            yield chunks

    async def _bind(self) -> Binding:
        """The tie of its calls; a new one when the old one is lost and the session allows it."""
        await self._directory.use(self._known)
        bindings = self._known.bindings
        binding = bindings.get(self.pool.name)
        if binding is None or binding.affinity != self.affinity:
            binding = bindings[self.pool.name] = Binding(self.affinity)
        found: Binding = binding
        if not found.lost or self._on_lost == "error":
            return found
        if self._rebinding.locked() and self._rebinding.statistics().owner == anyio.get_current_task():
            return found
        async with self._rebinding:
            current: Binding = bindings[self.pool.name]
            if not current.lost:
                return current
            made = bindings[self.pool.name] = Binding(self.affinity)
            if callable(self._on_lost):
                try:
                    await self._on_lost(self)
                except BaseException:
                    # Not rebuilt: whoever comes next tries again.
                    made.lost = True
                    raise
                if made.lost:
                    raise SessionWorkerUnavailable(
                        f"the worker of session {self.id!r} died while it was rebuilt", details={"session": self.id}
                    )
            return made

    def begin(self, request: Request, cancel: Callable[[SnakepitError], None]) -> None:
        """One of its calls is under way. For the pool."""
        self._calls[request] = None
        self._known.begin(request, cancel)

    def finish(self, request: Request) -> None:
        """One of its calls is over. For the pool."""
        self._calls.pop(request, None)
        self._known.finish(request, self._directory.store.clock())

    # ---- values ----------------------------------------------------------------------------------

    async def put(self, key: str, value: Any, *, expect: int | None = None) -> int | None:
        """Store a value, as it is now: later changes of the object are not seen.

        Args:
            key: Printable text of up to 256 bytes.
            value: Anything that could be an argument of a tool.
            expect: Store only if the value has this version; 0: only if there is none.

        Returns:
            The value's version, which grows by one with each put; None when ``expect`` did not fit and nothing was stored.

        Raises:
            InvalidParameter: The key or the value is refused.
            QuotaExceeded: It does not fit; ``details`` say which quota, its limit, what is used, what was asked.
            SessionNotFound: The session was closed, or has expired.
        """
        check_name(key, "key")
        if expect is not None and (type(expect) is not int or expect < 0):
            raise InvalidParameter(f"expect must be a version, not {expect!r}", details={"path": "expect"})
        await self._directory.use(self._known)
        data = codec.encode(value, what="value", limit=_ONE_PIECE, buffer_threshold=_ONE_PIECE).data
        store = self._directory.store
        try:
            return await store.ask(store.tables.put, self.id, key, data, expect, store.clock())
        except QuotaExceeded as exc:
            exc.details["session"] = self.id
            raise

    async def get(self, key: str, default: Any = None) -> Any:
        """A value, each time anew; ``default`` when there is none.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        found = await self._read(key)
        return default if found is None else _decode(found[0])

    async def get_versioned(self, key: str) -> tuple[Any, int]:
        """A value and its version, for ``put(..., expect=version)``; ``(None, 0)`` when there is none.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        found = await self._read(key)
        return (None, 0) if found is None else (_decode(found[0]), found[1])

    async def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value by what a function makes of it, so that no other update is lost.

        Args:
            key: The value's key.
            function: Takes the value and returns the new one; called again when another update came first.
            default: What it takes when there is none.

        Returns:
            The new value.
        """
        while True:
            value, version = await self.get_versioned(key)
            new = function(value if version else default)
            if await self.put(key, new, expect=version) is not None:
                return new

    async def delete(self, key: str) -> bool:
        """Delete a value. Returns whether there was one.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        await self._directory.use(self._known)
        store = self._directory.store
        return await store.ask(store.tables.discard, self.id, key, store.clock())

    async def keys(self) -> tuple[str, ...]:
        """The keys of its values, sorted.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        await self._directory.use(self._known)
        store = self._directory.store
        return tuple(await store.ask(store.tables.keys, self.id, store.clock()))

    async def _read(self, key: str) -> tuple[bytes, int] | None:
        check_name(key, "key")
        await self._directory.use(self._known)
        store = self._directory.store
        return await store.ask(store.tables.read, self.id, key, store.clock())

    # ---- the session itself ------------------------------------------------------------------------

    async def info(self) -> SessionInfo:
        """What there is to say of it.

        Raises:
            SessionNotFound: It was closed, or has expired.
        """
        return await self._directory.get(self.id)

    async def close(self) -> None:
        """End it, for everybody who has it open: its calls are cancelled, its values, programs and tools freed. Idempotent."""
        if self._known.ended is None:
            await self._directory.close(self.id)

    async def leave(self, *, detach: bool) -> None:
        """The block that opened it has ended. For the pool."""
        for request in list(self._calls):
            self.pool._end_call(request)
        await self._directory.leave(self._known, detach=detach)


def _decode(data: bytes) -> Any:
    return codec.decode(Payload(MSGPACK, data), what="value", limit=_ONE_PIECE)
