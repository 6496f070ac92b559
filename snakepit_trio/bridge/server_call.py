"""One RPC on the server's side: its headers are checked, its messages decoded, and its handler runs in its own scope.

The scope ends with the stream. A reset by the client, a lost connection or an expired deadline cancels the scope, and
with it the handler's wait in a queue or its call in a worker.

A call that only waits for its worker needs no task: it begins in the callback that completes its request, and ends in
the callback that reads the worker's reply. The same causes cancel it, except for the deadline, which its pool enforces.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from snakepit_trio._bulkhead import internal_error
from snakepit_trio._exceptions import is_a
from snakepit_trio.errors import InvalidPayload, QuotaExceeded, RequestTimeout, SnakepitError
from snakepit_trio.wire.http2.lean_hpack import FixedHeaders
from snakepit_trio.wire.http2.lean_stream import Stream
from snakepit_trio.wire.http2.pipe import FramePipe
from snakepit_trio.wire.http2.rules import ErrorCodes, H2Error
from snakepit_trio.wire.messages import read_message
from snakepit_trio.wire.tool_messages import ExecuteToolRequest

from .frame_budget import CRUMB, CRUMB_COST
from .methods import Method, Unimplemented, error_trailers

if TYPE_CHECKING:
    from .client_connection import BridgeConnection

__all__ = ["ServerCall"]

#: The largest number of messages of a client's stream that wait for their handler.
_MOST_WAITING = 1024
#: Seconds. After a deadline the handler has this long for its own error, which has more details.
_LAST_WORD = 0.25
#: The unsent bytes of one stream up to which its handler does not wait.
_UNSENT = 64 * 1024
_ANSWER = FixedHeaders((":status", "200"), ("content-type", "application/grpc"), ("grpc-accept-encoding", "identity"))
_OK = FixedHeaders(("grpc-status", "0"))


class _Message(Protocol):
    """The used part of betterproto2's message classes."""

    def __bytes__(self) -> bytes: ...


class ServerCall:
    """One RPC.

    Attributes:
        deadline: The client's deadline, on the event loop's clock; infinity for none.
        metadata: The request headers.
        lost: Whether the client has reset the call, or has disconnected.
    """

    def __init__(
        self,
        connection: BridgeConnection,
        stream: Stream,
        release: Callable[[], None],
        method: Method,
        metadata: Mapping[bytes, bytes],
        *,
        deadline: float,
        max_message: int,
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.deadline = deadline
        self._connection = connection
        self._stream = stream
        self._release: Callable[[], None] | None = release
        self._scope: anyio.CancelScope | None = None
        # Its only message, once complete, and the function that cancels a call that was begun without a task.
        self._request: Any = None
        self._leave: Callable[[], None] | None = None
        self.lost: bool = False
        self._refusal: SnakepitError | None = None
        self._answered = False
        self._finished = False
        self._received: deque[bytes] = deque()
        # The bytes of kept messages and of an arriving one; of the answer, here and at its source; and the sum that is
        # counted.
        self._kept = 0
        self._partial = 0
        self._unread = 0
        self._source: Callable[[], int] | None = None
        self._counted = 0
        # Whether there is no room for the received data.
        self._over = False
        self._ended = False
        # Set when there is another message, or room for one to send; None if its task does not wait.
        self._news: anyio.Event | None = None
        self._room: anyio.Event | None = None
        self._pipe = FramePipe(
            stream,
            on_message=self._on_message,
            on_close=self._on_close,
            max_message=max_message if method.longest is None else min(method.longest, max_message),
            call_soon=connection.transport.call_soon,
            on_end=self._on_end,
            on_room=self._on_room,
            on_refuse=self._on_refuse,
            on_held=self._on_held,
        )

    def __repr__(self) -> str:
        state = "lost" if self.lost else "waiting" if self._scope is None and self._leave is None else "running"
        return f"<ServerCall {state} {self._pipe!r}>"

    def start(self) -> None:
        """Start receiving."""
        if self.method.streams_in:
            self._connection.arrived(self)
            self._start_task()
        self._pipe.start()

    # ---- for the handlers --------------------------------------------------------------------------

    @property
    def client(self) -> object:
        """The client's connection, for code that counts per client."""
        return self._connection

    @property
    def time_left(self) -> float | None:
        """The seconds until the deadline, slightly above 0 at least; None for none."""
        return None if self.deadline == math.inf else max(self.deadline - self._connection.clock(), 0.001)

    async def receive(self) -> Any | None:
        """Return the next message of a streaming client; None at the end. A cancellation loses no message.

        Raises:
            InvalidPayload: The data is not a message of the method's class.
        """
        while not self._received:
            if self._ended:
                return None
            self._news = anyio.Event()
            await self._news.wait()
        return self._parse(self._take())

    async def send(self, message: _Message) -> None:
        """Send one message of a streaming answer. Waits until the client has made room for the earlier ones.

        Raises:
            QuotaExceeded: There is no room for it beside other unread messages.
        """
        while self._pipe.unsent > _UNSENT:
            await self._drained()
        self._send(bytes(message))
        if self._pipe.unsent and not self._count_unread():
            self._over = True
            raise self._too_much()

    def send_nowait(self, message: _Message) -> None:
        """Send one small message, with or without room."""
        self._send(bytes(message))

    def draw_from(self, source: Callable[[], int]) -> Callable[[], None]:
        """Count data that waits elsewhere to be sent; ``source`` returns its bytes. Returns a function to call when they
        change.
        """
        self._source = source
        return self._draw

    def _draw(self) -> None:
        if not self._count_unread():
            self._over = True
            self._refusal = self._too_much()
            if self._scope is not None:
                self._scope.cancel()

    def _send(self, data: bytes) -> None:
        if len(data) > _UNSENT and not self._count(self._counted + len(data)):
            self._count(self._counted - len(data))
            raise self._too_much()
        if not self._answered:
            self._answer()
        self._pipe.send(data)

    async def _drained(self) -> None:
        """Wait until the sent data has left."""
        if self._room is None or self._room.is_set():
            self._room = anyio.Event()
        await self._room.wait()

    # ---- what arrives ------------------------------------------------------------------------------

    def _on_message(self, message: bytes) -> None:
        if not self.method.streams_in and self._received:
            raise ValueError("one message was due, and more came")
        if len(self._received) >= _MOST_WAITING:
            raise ValueError("messages came faster than they were taken")
        self._received.append(message)
        self._kept += len(message)
        if self._news is not None:
            self._news.set()

    def _on_held(self, partial: int) -> bool:
        grown, self._partial = partial - self._partial, partial
        allowed = self._count(self._kept + partial + self._unread)
        if 0 < grown < min(CRUMB, partial):
            self._connection.charge(CRUMB_COST)
        # The connection may have ended because of it.
        return allowed or self._release is None

    def _count(self, size: int) -> bool:
        if self._release is None:
            size = 0
        by = size - self._counted
        self._counted = size
        return not by or self._connection.share.change(by)

    def _count_unread(self) -> bool:
        self._unread = self._pipe.unsent + (0 if self._source is None else self._source())
        return self._count(self._kept + self._partial + self._unread)

    def _too_much(self, what: str = "answer", *, retryable: bool = False) -> QuotaExceeded:
        budget = self._connection.share.budget
        return QuotaExceeded(
            f"there is no room for this {what} beside the requests and unread answers of this client and of others; "
            f"max_buffered is {budget.limit} bytes",
            details={"quota": "max_buffered", "limit": budget.limit, "used": budget.used},
            retryable=retryable,
        )

    def _take(self) -> bytes:
        message = self._received.popleft()
        if self.method.streams_in:
            # A request of one message is kept until it is answered.
            self._kept -= len(message)
            self._count(self._counted - len(message))
        return message

    def _on_end(self) -> None:
        self._ended = True
        if self._news is not None:
            self._news.set()
        if not self.method.streams_in:
            self._connection.arrived(self)
            self._begin()

    def _on_close(self, reason: str) -> None:
        """Handle the end of the stream: a reset, a lost connection, or a reset by the server for a violation."""
        self.drop()

    def drop(self) -> None:
        """Cancel the call because no client waits for its answer. Idempotent."""
        self.lost = True
        if self._scope is not None:
            self._scope.cancel()
        else:
            self.finish()

    def _on_refuse(self, kind: str, reason: str) -> None:
        if kind == "too_long":
            self._refusal = QuotaExceeded(reason, details={"quota": "max_message"})
        elif kind == "too_much":
            self._refusal = self._too_much("request", retryable=True)
        elif kind == "compressed":
            self._refusal = Unimplemented("compressed messages are not taken; grpc-accept-encoding is identity")
        else:
            self._refusal = InvalidPayload(f"the request was refused: {reason}")
        if self._scope is not None:
            self._scope.cancel()
        else:
            self.fail(self._refusal)
            self.finish()

    def give_up(self, error: SnakepitError) -> None:
        """End the call with this error before its request has arrived."""
        self.fail(error)
        self.finish()

    def _on_room(self) -> None:
        if self._counted > self._kept + self._partial:
            self._count_unread()
        if self._room is not None:
            self._room.set()

    def _parse(self, data: bytes) -> Any:
        kind = self.method.request
        try:
            return kind.parse(data) if kind is ExecuteToolRequest else read_message(kind, data)
        except Exception as exc:
            raise InvalidPayload(f"the request is not a {kind.__name__} message: {type(exc).__name__}") from None

    # ---- without a task ----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin the call without a task if its method can, else start its task; its request is complete."""
        leave = None
        try:
            if not self._received:
                raise InvalidPayload("the request has no message")
            self._request = self._parse(self._take())
            if self.method.begin is not None:
                leave = self.method.begin(self, self._request)
        except Exception as exc:
            self._settle(self._told(exc))
            return
        if leave is None:
            self._start_task()
        elif self._release is not None:
            self._leave = leave

    def conclude(self, answer: Callable[[], bytes], error: SnakepitError | None) -> None:
        """End a call that was begun without a task: with this error, or with the function's result or exception. Raises
        nothing.
        """
        self._leave = None
        try:
            if error is None:
                try:
                    self._reply(answer())
                except Exception as exc:
                    error = self._told(exc)
            self._settle(error)
        except Exception as exc:
            self._connection.fail(exc)
        finally:
            # The traceback refers to this frame with the answer, which must not wait for a garbage collection.
            del error

    def _settle(self, error: SnakepitError | None) -> None:
        if error is not None and not self.lost:
            self.fail(error)
        if self._is_unread():
            self._connection.run(self, self._stay)
        else:
            self.finish()

    async def _stay(self) -> None:
        """Run until the answer has been sent."""
        try:
            await self._drain()
        finally:
            self.finish()

    def _told(self, error: Exception) -> SnakepitError:
        """Return the error for the client."""
        if is_a(error, SnakepitError):
            return error  # type: ignore[return-value]
        self._connection.errors.report(error, "request")
        return internal_error(error)

    # ---- its task ----------------------------------------------------------------------------------

    def _start_task(self) -> None:
        self._scope = anyio.CancelScope()
        self._connection.run(self, self._run)

    async def _run(self) -> None:
        """Run the handler, and send its answer or its error."""
        assert self._scope is not None
        error: SnakepitError | None = None
        try:
            with self._scope as scope:
                # The handler enforces the deadline itself; this is for a handler that does not.
                scope.deadline = self.deadline + _LAST_WORD
                try:
                    await self._handle()
                except Exception as exc:
                    error = self._told(exc)
                    if self.lost:
                        return
            if scope.cancelled_caught:
                error = self._refusal or RequestTimeout("the deadline has passed", details={"phase": "running"})
            if not self.lost:
                await self._end(error)
        finally:
            # The traceback refers to this frame and those below it, with the request.
            del error
            self.finish()

    async def _handle(self) -> None:
        method = self.method
        if method.streams_in:
            await method.handler(self)
            return
        answer = await method.handler(self, self._request)
        if not method.streams_out and not self.lost:
            self._reply(bytes(answer))

    def _reply(self, data: bytes) -> None:
        """Send the answer and its trailers in one write."""
        transport = self._connection.transport
        transport.cork()
        try:
            self._send(data)
            self._succeed()
        finally:
            try:
                transport.uncork()
            except Exception as exc:
                # The kept data would not be sent, and the client would wait for it.
                self._connection.fail(exc)
                transport.uncork()

    async def _end(self, error: SnakepitError | None) -> None:
        """Send the trailers, and stay until they have been sent."""
        if self._finished:
            pass
        elif error is not None:
            self.fail(error)
        else:
            if not self._answered:
                self._answer()
            self._succeed()
        if self._is_unread():
            await self._drain(error)

    def _is_unread(self) -> bool:
        """Return whether the client has unread data of the answer; an answer without room is replaced by an error."""
        if not self._pipe.unsent:
            return False
        if self._count_unread() and not self._over:
            return True
        self._cut_off(self._too_much())
        return False

    def _cut_off(self, error: SnakepitError) -> None:
        """End the call with an error instead of its unsent data."""
        self._connection.send_headers(self._stream, self._trailers(error), end=True)
        self._pipe.close(ErrorCodes.NO_ERROR)

    async def _drain(self, error: SnakepitError | None = None) -> None:
        """Wait until all data is sent: a slow client gets its whole answer, or an error."""
        with anyio.CancelScope(deadline=self.deadline) as scope:
            self._scope = scope
            while self._pipe.unsent and not self.lost:
                await self._drained()
        if scope.cancelled_caught and not self.lost:
            late = RequestTimeout(
                "the deadline has passed, and not all of the answer had left", details={"phase": "running"}
            )
            self._cut_off(error or self._refusal or late)

    def _succeed(self) -> None:
        self._finished = True
        self._pipe.end(_OK)

    def _answer(self) -> None:
        """Begin the answer; it leaves with the next data."""
        self._connection.send_headers(self._stream, _ANSWER, flush=False)
        self._answered = True

    def fail(self, error: SnakepitError) -> None:
        """End the call with an error, after the data that was sent."""
        self._finished = True
        trailers = self._trailers(error)
        if self._answered:
            self._pipe.end(trailers)
        else:
            self._answered = True
            self._connection.send_headers(
                self._stream, [(":status", "200"), ("content-type", "application/grpc"), *trailers], end=True
            )
            self._pipe.close(ErrorCodes.NO_ERROR)

    def _trailers(self, error: SnakepitError) -> list[tuple[str, str]]:
        connection = self._connection
        try:
            return error_trailers(error, connection.redactor, connection.trailer_room)
        except Exception as exc:
            connection.errors.report(exc, "request")
            return [("grpc-status", "13"), ("grpc-message", "internal error")]

    def finish(self) -> None:
        """Release the call's resources at its end. Idempotent."""
        release, self._release = self._release, None
        if release is None:
            return
        leave, self._leave = self._leave, None
        # Each step runs even if another one fails.
        try:
            if leave is not None:
                try:
                    leave()
                except Exception as exc:
                    # Tried again, because the call would otherwise keep its worker.
                    self._connection.errors.report(exc, "operation")
                    leave()
        finally:
            try:
                # A client that is still sending is told to stop; an answer that was sent counts (RFC 9113, 8.1).
                self._pipe.close(ErrorCodes.CANCEL if self.lost or not self._answered else ErrorCodes.NO_ERROR)
            finally:
                try:
                    release()
                except (KeyError, H2Error):
                    pass  # The connection has ended.
                finally:
                    self._received.clear()
                    self._request = None
                    if self._room is not None:
                        self._room.set()
                    try:
                        self._count(0)
                    finally:
                        self._connection.done(self)
