"""A session as its users see it: calls tied to a worker, values, tools, all of which end with it."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

import anyio

from snakepit_trio._bulkhead import operation
from snakepit_trio._call_options import CallKeywords, CallOptions, StreamKeywords, declares
from snakepit_trio.errors import (
    InvalidParameter,
    QuotaExceeded,
    SessionNotFound,
    SnakepitError,
)
from snakepit_trio.sessions.records import SessionInfo, check_name, check_ttl, compare_and_set, session_not_found
from snakepit_trio.tools.registry import ToolRegistry
from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import MSGPACK, Payload

from ..scheduling.request import Binding
from .affinity import AFFINITIES, Ties, affinity_in
from .stream import STREAM_BYTES, ChunkStream

if TYPE_CHECKING:
    from snakepit_trio._bulkhead import InternalErrors
    from snakepit_trio.sessions.directory import KnownSession, SessionDirectory

    from ..pool import Pool
    from .submission import Arguments

__all__ = ["OnLost", "Session", "open_session", "resume_session"]

#: What becomes of a strict session whose worker has died; what a function returns is awaited if it can be.
OnLost = str | Callable[["Session"], object]
#: Values are stored in one piece.
_ONE_PIECE: Final = 1 << 62
#: How long leaving a session may take, in seconds: its store may be on a disk or behind a network.
_LEAVE = 10.0

T = TypeVar("T")


class Session:
    """A session of one pool. Made by :meth:`snakepit_trio.Pool.session`.

    Attributes:
        id: Its id, by which it can be resumed.
        pool: The pool that its calls go to.
        affinity: How its calls are tied to a worker, or more strictly, if another block has opened the session so.
    """

    def __init__(
        self, pool: Pool, directory: SessionDirectory, known: KnownSession, *, affinity: str, on_lost: OnLost
    ) -> None:
        self.id: str = known.id
        self.pool = pool
        self.affinity = affinity
        self._directory = directory
        self._known = known
        self._ties = Ties(self, known, on_lost)
        self._calls: dict[object, Callable[[], object]] = {}

    def __repr__(self) -> str:
        state = "ended" if self._known.ended is not None else "open"
        return f"<Session {self.id!r} {state} of pool {self.pool.name!r} running={len(self._calls)}>"

    @property
    def ttl(self) -> float | None:
        """Seconds that it lives without being used; None: for ever."""
        return self._known.ttl

    @property
    def fail_fast(self) -> bool:
        """Whether a call of it is refused when its worker is busy. For the pool."""
        return self.affinity == "strict_fail_fast"

    @property
    def worker_id(self) -> str | None:
        """The worker that it is tied to, while there is one."""
        seats = self._ties.seats
        if seats is None:
            return None
        port: Any = seats.port
        found: str = port.worker.id
        return found

    @property
    @operation
    def tools(self) -> ToolRegistry:
        """Host tools that only this session's calls can call; they go before the runtime's, and end with the session.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        self.check_open()
        if self._known.tools is None:
            self._known.tools = ToolRegistry(self._errors)
        found: ToolRegistry = self._known.tools
        return found

    # ---- calls -----------------------------------------------------------------------------------

    @declares(CallKeywords)
    async def execute(self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]) -> Any:
        """Run a tool in the session's worker; what is not said here is as in :meth:`snakepit_trio.Pool.execute`.

        Args:
            tool: The tool's name.
            params: Its arguments by name.
            options: ``timeout``, in seconds, ``priority``, ``metadata`` and ``idempotent`` of :meth:`snakepit_trio.Pool.execute`.

        Raises:
            SessionNotFound: The session was closed, or has expired.
            SessionWorkerUnavailable: The affinity is strict, and the worker is gone.
            WorkerBusy: The affinity is ``"strict_fail_fast"``, and the worker is busy.
            RequestCancelled: The session was closed while the call was under way.
        """
        binding, bound = await self._bind(tool, options, CallKeywords, self.pool.config.timeout)
        return await self.pool._calls.execute(tool, params, bound, session=self, binding=binding)

    async def call(self, tool: str, params: Arguments, options: CallOptions) -> Any:
        """Run a tool with options that have been checked. For the bridge."""
        binding, bound = await self._bind(tool, options, CallKeywords, self.pool.config.timeout)
        return await self.pool._calls.execute(tool, params, bound, session=self, binding=binding)

    @declares(StreamKeywords)
    @operation
    def stream(
        self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[StreamKeywords]
    ) -> AbstractAsyncContextManager[ChunkStream]:
        """Run a streaming tool in the session's worker; what is not said here is as in :meth:`snakepit_trio.Pool.stream`.

        Args:
            tool: The tool's name.
            params: Its arguments by name.
            options: ``timeout``, in seconds, ``priority`` and ``metadata`` of :meth:`snakepit_trio.Pool.stream`.

        Raises:
            SessionNotFound, WorkerBusy: As from :meth:`execute`, on entering the block.
            SessionWorkerUnavailable: As from :meth:`execute`, on entering the block, or out of the iteration.
            RequestCancelled: Out of the iteration: the session was closed while the call was under way.
        """
        return self._errors.block(self._stream(tool, params, options), "stream")

    @asynccontextmanager
    async def _stream(
        self,
        tool: str,
        params: Arguments,
        options: StreamKeywords | CallOptions,
        window_bytes: int = STREAM_BYTES,
    ) -> AsyncIterator[ChunkStream]:
        binding, bound = await self._bind(tool, options, StreamKeywords, self.pool.config.stream_timeout)
        async with self.pool._calls.stream(
            tool, params, bound, session=self, binding=binding, window_bytes=window_bytes
        ) as chunks:
            yield chunks

    @property
    def _errors(self) -> InternalErrors:
        return self.pool._errors

    async def _bind(
        self, tool: str, options: StreamKeywords | CallOptions, allowed: type, default: float | None
    ) -> tuple[Binding, CallOptions]:
        """The tie of a call; a new one when the old one is lost and the session allows it. And its options, with the time left.

        Args:
            options: As the caller has given them, or checked already.
            allowed: The class that declares the keywords.
            default: The pool's limit, in seconds.
        """
        self._errors.check_home()
        try:
            if not isinstance(options, CallOptions):
                options = CallOptions.of(options, allowed)
            await self._directory.use(self._known)
            binding = self._ties.tie()
            if binding is not None:
                return binding, options
            limit = options.limit(default)
            deadline = math.inf if limit is None else anyio.current_time() + limit
            decided = options.decided("timeout" if allowed is CallKeywords else "stream_timeout", default)
            with self.pool._calls.standing.wait(tool, self, decided, deadline, "its session to be rebuilt"):
                binding = await self._ties.rebuilt()
            return binding, options.within(None if limit is None else max(0.0, deadline - anyio.current_time()))
        except SnakepitError:
            raise
        except Exception as exc:
            if exc is self._ties.raised:
                raise
            raise self._errors.caller(exc) from exc

    def check_open(self) -> None:
        """Raise SessionNotFound if it was closed, or has expired. For the pool."""
        if self._known.ended is not None:
            raise session_not_found(self.id)

    def begin(self, call: object, end: Callable[[], object]) -> None:
        """One of its calls begins; ``end`` ends it for its caller. For the pool.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        self._directory.begin(self._known, call, end)
        self._calls[call] = end

    def finish(self, call: object) -> None:
        """One of its calls is over. For the pool."""
        self._calls.pop(call, None)
        self._directory.finish(self._known, call)

    # ---- values ----------------------------------------------------------------------------------

    @operation
    async def put(self, key: str, value: Any, *, expect: int | None = None) -> int | None:
        """Store a value, as it is now: later changes of the object are not seen.

        A cancellation comes before it, and nothing is stored, or after it.

        Args:
            key: Printable text of up to 256 bytes.
            value: Anything that could be an argument of a tool.
            expect: Store only if the value has this version; 0: only if there is none.

        Returns:
            The value's version, greater than any that the session had before; None when ``expect`` did not fit and nothing
            was stored.

        Raises:
            InvalidParameter: The key or the value is refused.
            QuotaExceeded: It does not fit; ``details`` say which quota, its limit, what is used, what was asked.
            SessionNotFound: The session was closed, or has expired.
        """
        return await self._put(
            key, lambda: codec.encode(value, what="value", limit=_ONE_PIECE, buffer_threshold=_ONE_PIECE).data, expect
        )

    async def _put(self, key: str, encode: Callable[[], bytes], expect: int | None) -> int | None:
        check_name(key, "key")
        if expect is not None and (type(expect) is not int or expect < 0):
            raise InvalidParameter(f"expect must be a version, not {expect!r}", details={"path": "expect"})
        try:
            return await self._ask(self._directory.store.tables.put, key, encode(), expect)
        except QuotaExceeded as exc:
            exc.details["session"] = self.id
            raise

    @operation
    async def get(self, key: str, default: Any = None) -> Any:
        """A value, read anew each time.

        A cancellation leaves everything as it is.

        Args:
            key: The value's key.
            default: What to return when there is none.

        Raises:
            InvalidParameter: The key is none.
            SessionNotFound: The session was closed, or has expired.
        """
        found = await self._read(key)
        return default if found is None else _decode(found[0])

    @operation
    async def get_versioned(self, key: str) -> tuple[Any, int]:
        """A value and its version, for ``put(..., expect=version)``; ``(None, 0)`` when there is none.

        A cancellation leaves everything as it is.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        found = await self._read(key)
        return (None, 0) if found is None else (_decode(found[0]), found[1])

    async def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value by what a function makes of it, so that no other update is lost.

        A cancellation comes before an attempt to store, and nothing is stored, or after it.

        Args:
            key: The value's key.
            function: Takes the value and returns the new one; called again when another update came first.
            default: What it takes when there is none.

        Returns:
            The new value.
        """
        return await compare_and_set(self.get_versioned, self.put, key, function, default)

    @operation
    async def delete(self, key: str) -> bool:
        """Delete a value. Returns whether there was one.

        A cancellation comes before it, and nothing is deleted, or after it.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        check_name(key, "key")
        return await self._ask(self._directory.store.tables.discard, key)

    @operation
    async def keys(self) -> tuple[str, ...]:
        """The keys of its values, sorted.

        A cancellation leaves everything as it is.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        return tuple(await self._ask(self._directory.store.tables.keys))

    async def _read(self, key: str) -> tuple[bytes, int] | None:
        check_name(key, "key")
        return await self._ask(self._directory.store.tables.read, key)

    async def _ask(self, method: Callable[..., T], *arguments: Any) -> T:
        await self._directory.use(self._known)
        store = self._directory.store
        try:
            return await store.ask(method, self.id, *arguments, store.clock(), generation=self._known.generation)
        except SessionNotFound:
            self._directory.lost(self._known)
            raise

    # ---- the session itself ------------------------------------------------------------------------

    @operation
    async def info(self) -> SessionInfo:
        """What there is to say of it.

        A cancellation leaves everything as it is.

        Raises:
            SessionNotFound: It was closed, or has expired.
        """
        return await self._directory.info(self.id, self._known.generation)

    @operation
    async def close(self) -> None:
        """End it, for everybody who has it open: its calls are cancelled, its values, programs and tools freed. Idempotent."""
        if self._known.ended is None:
            await self._directory.end(self.id, self._known.generation)

    def _leave(self, *, detach: bool) -> None:
        """The block that opened it has ended. Idempotent."""
        for end in list(self._calls.values()):
            end()
        if self._known.ended is None:
            self._ties.leave(detach=detach)


@asynccontextmanager
async def open_session(
    pool: Pool,
    directory: SessionDirectory,
    id: str | None,
    *,
    affinity: str,
    ttl: float | None,
    metadata: Mapping[str, str],
    on_lost: OnLost,
    detach: bool,
) -> AsyncIterator[Session]:
    """A session for the time of a block; see :meth:`snakepit_trio.Pool.session`."""
    if affinity not in AFFINITIES:
        raise InvalidParameter(
            f"affinity must be one of {', '.join(AFFINITIES)}, not {affinity!r}", details={"path": "affinity"}
        )
    if not callable(on_lost) and on_lost not in ("error", "rebind"):
        raise InvalidParameter(
            f"on_lost must be 'error', 'rebind' or a function, not {on_lost!r}", details={"path": "on_lost"}
        )
    id = secrets.token_urlsafe(12) if id is None else check_name(id, "id")
    known = await directory.open(id, check_ttl(ttl), dict(metadata))
    session: Session | None = None
    try:
        session = Session(pool, directory, known, affinity=affinity, on_lost=on_lost)
        session._ties.join()
        yield session
    finally:
        await _let_go(directory, known, session, detach=detach)


@asynccontextmanager
async def resume_session(
    pool: Pool, directory: SessionDirectory, id: str, generation: str | None
) -> AsyncIterator[Session]:
    """A session that is there, as it was opened, for the time of a block that leaves it there.

    Args:
        generation: Only the session of this generation is meant.

    Raises:
        SessionNotFound: It is not there.
        PoolClosed: The pool is closing or closed.
    """
    pool._supervisor.check_open()
    known = await directory.open(check_name(id, "id"), None, {}, generation=generation, make=False)
    session: Session | None = None
    try:
        session = Session(pool, directory, known, affinity=affinity_in(pool, known), on_lost="error")
        yield session
    finally:
        await _let_go(directory, known, session, detach=True)


async def _let_go(directory: SessionDirectory, known: KnownSession, session: Session | None, *, detach: bool) -> None:
    """A block has ended, or was not entered: its handle is given back, also when it is cancelled."""
    known.handles -= 1
    with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVE):
        try:
            await _left(directory, known, session, detach=detach)
        except Exception:
            # Once more: nobody else would end it.
            await _left(directory, known, session, detach=detach)
            raise


async def _left(directory: SessionDirectory, known: KnownSession, session: Session | None, *, detach: bool) -> None:
    """A block has ended. To be called once more when it has failed."""
    try:
        if session is not None:
            session._leave(detach=detach)
    finally:
        await directory.leave(known, detach=detach)


def _decode(data: bytes) -> Any:
    return codec.decode(Payload(MSGPACK, data), what="value", limit=_ONE_PIECE)
