"""A session as its users see it: calls bound to a worker, values and tools, which all end with the session."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, overload

import anyio

from snakepit_trio._bulkhead import operation
from snakepit_trio._call_options import CallKeywords, CallOptions, StreamKeywords, declares, tool_name
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
from .proxy import converter_of
from .stream import STREAM_BYTES, ChunkStream

if TYPE_CHECKING:
    from snakepit_trio._bulkhead import InternalErrors
    from snakepit_trio.sessions.directory import KnownSession, SessionDirectory

    from ..pool import Pool
    from .submission import Arguments

__all__ = ["OnLost", "Session", "open_session", "resume_session"]

#: The behaviour of a strict session after the loss of its worker; a function may be async.
OnLost = str | Callable[["Session"], object]
#: Values are stored in one buffer.
_ONE_PIECE: Final = 1 << 62
#: Seconds. The longest time for leaving a session; its store may be on a disk or behind a network.
_LEAVE = 10.0

T = TypeVar("T")


class Session:
    """A session of one pool. Created by :meth:`snakepit_trio.Pool.session`.

    Attributes:
        id: The session's id, by which it can be resumed.
        pool: The pool of its calls.
        affinity: The affinity that this block has asked for; a stricter one of another block takes precedence.
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
        """The seconds without use after which the session expires; None: never."""
        return self._known.ttl

    @property
    def fail_fast(self) -> bool:
        """Whether its calls are refused while its worker is busy. For the pool."""
        return self.affinity == "strict_fail_fast"

    @property
    def worker_id(self) -> str | None:
        """The id of the worker to which the session is bound, or None."""
        seats = self._ties.seats
        if seats is None:
            return None
        return seats.worker_id

    @property
    @operation
    def tools(self) -> ToolRegistry:
        """The session's own host tools. Only this session's calls can call them; they take precedence over the runtime's,
        and end with the session.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        self.check_open()
        if self._known.tools is None:
            self._known.tools = ToolRegistry(self._errors)
        found: ToolRegistry = self._known.tools
        return found

    # ---- calls -----------------------------------------------------------------------------------

    @overload
    async def execute(
        self,
        tool: Callable[..., Awaitable[T]],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> T: ...

    @overload
    async def execute(
        self,
        tool: str | Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> Any: ...

    @declares(CallKeywords)
    async def execute(
        self,
        tool: str | Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> Any:
        """Run a tool in the session's worker; otherwise, also for a cancellation, as :meth:`snakepit_trio.Pool.execute`.

        Args:
            tool: The tool's name, or a method of the object that :meth:`snakepit_trio.Pool.bind` returned.
            params: The arguments by name.
            options: ``timeout``, in seconds, ``priority``, ``metadata`` and ``idempotent`` of
                :meth:`snakepit_trio.Pool.execute`.

        Raises:
            SessionNotFound: The session was closed, or has expired.
            SessionWorkerUnavailable: The affinity is strict, and the worker has ended.
            WorkerBusy: The affinity is ``"strict_fail_fast"``, and the worker is busy.
            RequestCancelled: The session was closed during the call.
        """
        name = tool_name(tool)
        binding, bound = await self._bind(name, options, CallKeywords, self.pool.config.timeout)
        found = await self.pool.calls.execute(name, params, bound, session=self, binding=binding)
        return found if isinstance(tool, str) else converter_of(tool)(found)

    async def call(self, tool: str, params: Arguments, options: CallOptions) -> Any:
        """Run a tool with checked options. For the bridge."""
        binding, bound = await self._bind(tool, options, CallKeywords, self.pool.config.timeout)
        return await self.pool.calls.execute(tool, params, bound, session=self, binding=binding)

    @declares(StreamKeywords)
    @operation
    def stream(
        self,
        tool: str | Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[StreamKeywords],
    ) -> AbstractAsyncContextManager[ChunkStream]:
        """Run a streaming tool in the session's worker; otherwise as :meth:`snakepit_trio.Pool.stream`.

        Args:
            tool: The tool's name.
            params: The arguments by name.
            options: ``timeout``, in seconds, ``priority`` and ``metadata`` of :meth:`snakepit_trio.Pool.stream`.

        Raises:
            SessionNotFound, WorkerBusy: As from :meth:`execute`, on entering the block.
            SessionWorkerUnavailable: As from :meth:`execute`, on entering the block or from the iteration.
            RequestCancelled: Raised by the iteration: the session was closed during the call.
        """
        return self._errors.block(self.open_stream(tool_name(tool), params, options), "stream")

    @asynccontextmanager
    async def open_stream(
        self,
        tool: str,
        params: Arguments,
        options: StreamKeywords | CallOptions,
        window_bytes: int = STREAM_BYTES,
    ) -> AsyncIterator[ChunkStream]:
        """Run a streaming tool; see :meth:`stream`, also for what a cancellation leaves. For the bridge.

        Args:
            options: As the caller has given them, or checked already.
            window_bytes: Bytes of chunks that may be under way or wait for the consumer.
        """
        binding, bound = await self._bind(tool, options, StreamKeywords, self.pool.config.stream_timeout)
        async with self.pool.calls.stream(
            tool, params, bound, session=self, binding=binding, window_bytes=window_bytes
        ) as chunks:
            yield chunks

    @property
    def _errors(self) -> InternalErrors:
        return self.pool.calls.errors

    async def _bind(
        self, tool: str, options: StreamKeywords | CallOptions, allowed: type, default: float | None
    ) -> tuple[Binding, CallOptions]:
        """Return the binding of a call, and its options with the remaining time. A lost binding is replaced if the session
        allows it.

        Args:
            options: The options, as the caller gave them or already checked.
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
            with self.pool.calls.paused.wait(tool, self, decided, deadline, "its session to be rebuilt"):
                binding = await self._ties.rebuilt()
            return binding, options.within(None if limit is None else max(0.0, deadline - anyio.current_time()))
        except SnakepitError:
            raise
        except Exception as exc:
            if exc is self._ties.raised:
                raise
            raise self._errors.caller(exc) from exc

    def check_open(self) -> None:
        """Raise SessionNotFound if the session was closed, or has expired. For the pool."""
        if self._known.ended is not None:
            raise session_not_found(self.id)

    def begin(self, call: object, end: Callable[[], object]) -> None:
        """Record the begin of a call; ``end`` ends it for its caller. For the pool.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        self._directory.begin(self._known, call, end)
        self._calls[call] = end

    def finish(self, call: object) -> None:
        """Record the end of a call. For the pool."""
        self._calls.pop(call, None)
        self._directory.finish(self._known, call)

    # ---- values ----------------------------------------------------------------------------------

    @operation
    async def put(self, key: str, value: Any, *, expect: int | None = None) -> int | None:
        """Store a copy of a value: later changes of the object have no effect.

        After a cancellation the value is either stored or not.

        Args:
            key: Printable text of up to 256 bytes.
            value: Any value that may be a tool's argument.
            expect: Store only if the current value has this version; 0: only if there is no value.

        Returns:
            The value's version, greater than any earlier version in the session; None if ``expect`` did not match and
                nothing was stored.

        Raises:
            InvalidParameter: The key or the value is invalid.
            QuotaExceeded: The value does not fit; ``details`` holds the quota, its limit, the used amount and the
                requested amount.
            SessionNotFound: The session was closed, or has expired.
        """
        return await self.put_encoded(
            key, lambda: codec.encode(value, what="value", limit=_ONE_PIECE, buffer_threshold=_ONE_PIECE).data, expect
        )

    async def put_encoded(self, key: str, encode: Callable[[], bytes], expect: int | None) -> int | None:
        """Store a value that is encoded when everything else has been checked. For the bridge.

        A cancellation comes before the value is stored, and nothing is stored, or after it.
        """
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
        """Return a new copy of a value.

        A cancellation changes nothing.

        Args:
            key: The value's key.
            default: The result if there is no value.

        Raises:
            InvalidParameter: The key is invalid.
            SessionNotFound: The session was closed, or has expired.
        """
        found = await self.read_encoded(key)
        return default if found is None else _decode(found[0])

    @operation
    async def get_versioned(self, key: str) -> tuple[Any, int]:
        """Return a value and its version, for ``put(..., expect=version)``; ``(None, 0)`` if there is no value.

        A cancellation changes nothing.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        found = await self.read_encoded(key)
        return (None, 0) if found is None else (_decode(found[0]), found[1])

    async def update(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value by a function of it, without losing another update.

        After a cancellation the new value is either stored or not.

        Args:
            key: The value's key.
            function: Takes the value and returns the new value; called again if another update came first.
            default: The function's argument if there is no value.

        Returns:
            The new value.
        """
        return await compare_and_set(self.get_versioned, self.put, key, function, default)

    @operation
    async def delete(self, key: str) -> bool:
        """Delete a value, and return whether there was one.

        After a cancellation the value is either deleted or not.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        check_name(key, "key")
        return await self._ask(self._directory.store.tables.discard, key)

    @operation
    async def keys(self) -> tuple[str, ...]:
        """Return the keys of the session's values, sorted.

        A cancellation changes nothing.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        return tuple(await self._ask(self._directory.store.tables.keys))

    async def read_encoded(self, key: str) -> tuple[bytes, int] | None:
        """Read a value as it is stored, and its version. For the bridge. A cancellation changes nothing."""
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
        """Return a snapshot of the session.

        A cancellation changes nothing.

        Raises:
            SessionNotFound: The session was closed, or has expired.
        """
        return await self._directory.info(self.id, self._known.generation)

    @operation
    async def close(self) -> None:
        """End the session for all blocks that have it open: cancel its calls, and delete its values, programs and tools.
        Idempotent.

        A cancellation comes before the end or after it.
        """
        if self._known.ended is None:
            await self._directory.end(self.id, self._known.generation)

    def _leave(self, *, detach: bool) -> None:
        """Record that the block has ended. Idempotent."""
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
    """Open a session for the time of a block; see :meth:`snakepit_trio.Pool.session`."""
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
    """Use an existing session for the time of a block, and leave it open.

    Args:
        generation: Accept only the session of this generation.

    Raises:
        SessionNotFound: There is no such session.
        PoolClosed: The pool is closing or closed.
    """
    pool.supervisor.check_open()
    known = await directory.open(check_name(id, "id"), None, {}, generation=generation, make=False)
    session: Session | None = None
    try:
        session = Session(pool, directory, known, affinity=affinity_in(pool, known), on_lost="error")
        yield session
    finally:
        await _let_go(directory, known, session, detach=True)


async def _let_go(directory: SessionDirectory, known: KnownSession, session: Session | None, *, detach: bool) -> None:
    """Give a block's handle back after its end, or if it was not entered; also when cancelled."""
    known.handles -= 1
    with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVE):
        try:
            await _left(directory, known, session, detach=detach)
        except Exception:
            # Tried again, because no other code would end it.
            await _left(directory, known, session, detach=detach)
            raise


async def _left(directory: SessionDirectory, known: KnownSession, session: Session | None, *, detach: bool) -> None:
    """Give a block's handle back. May be called again after a failure."""
    try:
        if session is not None:
            session._leave(detach=detach)
    finally:
        await directory.leave(known, detach=detach)


def _decode(data: bytes) -> Any:
    return codec.decode(Payload(MSGPACK, data), what="value", limit=_ONE_PIECE)
