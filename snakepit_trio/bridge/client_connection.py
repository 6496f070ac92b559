"""One client's connection: the server side of grpclib's engine, admission of requests, and the causes of its end.

grpclib's own server makes an asyncio task for each request. Here a socket of either event loop feeds the engine
(:mod:`snakepit_trio.wire.sockets`), and each request is a task in the connection's nursery. A request that is refused,
for its token or another header, costs neither a task nor any of its body.
"""

from __future__ import annotations

import functools
import hmac
import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import anyio
import anyio.abc
import attrs
import sniffio

from snakepit_trio._bulkhead import InternalErrors, internal_error
from snakepit_trio._fair_budget import Share
from snakepit_trio._interrupts import protected
from snakepit_trio._waiting import event_loop
from snakepit_trio.errors import AuthenticationFailed, InvalidParameter, PoolClosed, RequestTimeout, SnakepitError
from snakepit_trio.observe.redaction import Redactor
from snakepit_trio.pool.scheduling.request import CLIENT
from snakepit_trio.wire import status
from snakepit_trio.wire.http2.lean_stream import Stream
from snakepit_trio.wire.http2.rules import ErrorCodes, find_flaw
from snakepit_trio.wire.http2.server_engine import ConnectionHandler, ServerProtocol
from snakepit_trio.wire.sockets import SocketTransport

from .frame_budget import COSTS, EMPTY_DATA, REFUSED, Flooded, Guard
from .methods import Method, Unimplemented, error_trailers, read_timeout
from .server_call import ServerCall

__all__ = ["BridgeConnection", "Limits", "Services"]

_log = logging.getLogger(__name__)

#: Until a client has sent its token: the bytes of one read, and the largest message of an RPC.
_FIRST_READS = 4 * 1024


_Headers = list[tuple[bytes, bytes]]


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of one connection; see :class:`snakepit_trio.BridgeConfig` for each."""

    max_streams: int
    max_message: int
    max_header_size: int
    handshake_timeout: float
    idle_timeout: float | None
    receive_timeout: float
    keepalive_interval: float | None
    keepalive_timeout: float


class Services(Protocol):
    """The services of a bridge."""

    methods: Mapping[bytes, Method]
    redactor: Redactor
    errors: InternalErrors


class BridgeConnection(ConnectionHandler):
    """An accepted connection.

    Args:
        transport: Its socket, after TLS.
        services: The services of the bridge.
        limits: The limits of the connection.
        share: Counts the bytes of its requests and of its unread answers.
        token: The expected ``Bearer TOKEN``.
        nursery: The nursery of its requests' tasks.
        keepalive: Whether the system may not notice the peer's disappearance (TCP).
        on_known: Called once, when the client has sent the token.
        on_expelled: Called with the reason when the connection is closed for the client's behaviour.
    """

    def __init__(
        self,
        transport: SocketTransport,
        services: Services,
        limits: Limits,
        share: Share,
        token: bytes,
        nursery: anyio.abc.TaskGroup,
        *,
        keepalive: bool,
        on_known: Callable[[], object],
        on_expelled: Callable[[str], object],
    ) -> None:
        self.transport = transport
        self.limits: Limits = limits
        self.share = share
        self.clock: Callable[[], float] = event_loop(sniffio.current_async_library()).now
        now = self.clock()
        self._guard = Guard(now)
        self.authenticated: bool = False
        self.draining: bool = False
        self.began = now
        self.redactor: Redactor = services.redactor
        self._services = services
        self._on_known = on_known
        self._on_expelled = on_expelled
        self._expected = token
        self._nursery = nursery
        self._keepalive = limits.keepalive_interval if keepalive else None
        self._calls: set[ServerCall] = set()
        self._quiet_since = now
        self._quiet = anyio.Event()
        self._arrivals: dict[ServerCall, float] = {}
        self._over = False
        # The headers that were checked last, without the timeout.
        self._seen: list[tuple[bytes, bytes]] = []
        transport.read_size = _FIRST_READS
        self._protocol = ServerProtocol(self, COSTS, empty_data=EMPTY_DATA)
        self.errors: InternalErrors = services.errors
        self._protocol.errors = services.errors
        transport.attach(self._protocol)

    def __repr__(self) -> str:
        known = "known" if self.authenticated else "unknown"
        return f"<BridgeConnection {known} calls={len(self._calls)} {self.transport!r}>"

    @property
    def calls(self) -> int:
        """The number of its requests."""
        return len(self._calls)

    @property
    def trailer_room(self) -> int:
        """The bytes of trailers that the client accepts."""
        theirs = self._protocol.peers_header_limit
        return status.DEFAULT_ROOM if theirs is None else max(min(theirs // 2, 24 * 1024), 1024)

    # ---- requests, as the engine tells of them -----------------------------------------------------

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        """Handle the headers of a request."""
        checked = self._checked(headers)
        if checked is None:
            release_stream()
            return
        given = dict(checked)
        if len(self._calls) >= self.limits.max_streams:
            # The peer has reset streams whose tasks are still ending.
            stream.reset_nowait(ErrorCodes.REFUSED_STREAM)
            release_stream()
            return
        if given.get(b":method") != b"POST" or not given.get(b"content-type", b"").startswith(b"application/grpc"):
            code = "405" if given.get(b":method") != b"POST" else "415"
            self.send_headers(stream, [(":status", code)], end=True)
            self._dismiss(stream, release_stream)
            return
        method = self._services.methods.get(given.get(b":path", b""))
        try:
            call = self._admit(stream, given, release_stream, method)
        except SnakepitError as exc:
            trailers = error_trailers(exc, self.redactor)
            if isinstance(exc, Unimplemented):
                trailers.append(("grpc-accept-encoding", "identity"))
            head = [(":status", "200"), ("content-type", "application/grpc")]
            self.send_headers(stream, [*head, *trailers], end=True)
            self._dismiss(stream, release_stream)
            self.charge(REFUSED)
            return
        self._calls.add(call)
        self._arrivals[call] = self.clock() + self.limits.receive_timeout
        call.start()

    def _checked(self, headers: _Headers, *, trailers: bool = False) -> _Headers | None:
        """Return headers that conform to HTTP/2 (RFC 9113, 8.2 and 8.3). Other headers end the connection, and None is
        returned.

        White space around a value is removed, as gRPC allows: an odd token must not cost a client its other calls.
        """
        # A client's requests differ only in their timeouts, which are checked separately.
        same = [item for item in headers if item[0] != b"grpc-timeout"]
        if same == self._seen and len(headers) - len(same) < 2 and not trailers:
            return headers
        if find_flaw(headers, trailers=trailers):
            headers = [(name, value if name.startswith(b":") else value.strip(b" \t")) for name, value in headers]
            flaw = find_flaw(headers, trailers=trailers)
            if flaw:
                self._goodbye(ErrorCodes.PROTOCOL_ERROR, flaw)
                return None
        elif not trailers:
            self._seen = same
        return headers

    def check_trailers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Check the trailers with which a client has ended a request."""
        self._checked(headers, trailers=True)

    def _admit(
        self, stream: Stream, headers: dict[bytes, bytes], release: Callable[[], None], method: Method | None
    ) -> ServerCall:
        public = method is not None and method.public
        if hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            if not self.authenticated:
                self.authenticated = True
                self.transport.read_size = 64 * 1024
                self._on_known()
        elif not public:
            raise AuthenticationFailed("the token is missing or wrong: send authorization: Bearer TOKEN")
        if method is None:
            path = headers.get(b":path", b"").decode("ascii", "replace")[:200]
            raise Unimplemented(f"there is no method {path}")
        if self.draining:
            raise PoolClosed("the host is closing")
        if headers.get(b"grpc-encoding", b"identity") != b"identity":
            raise Unimplemented("compressed messages are not taken; grpc-accept-encoding is identity")
        deadline = math.inf
        if b"grpc-timeout" in headers:
            try:
                deadline = self.clock() + read_timeout(headers[b"grpc-timeout"])
            except ValueError as exc:
                raise InvalidParameter(str(exc), details={"path": "grpc-timeout"}) from None
        limit = self.limits.max_message if self.authenticated else 4 * 1024
        return ServerCall(self, stream, release, method, headers, deadline=deadline, max_message=limit)

    def _dismiss(self, stream: Stream, release: Callable[[], None]) -> None:
        if stream.closable:
            stream.reset_nowait(ErrorCodes.NO_ERROR)
        release()

    def cancel(self, stream: Stream) -> None:
        """Ignore a reset by the peer: the call has already been informed."""

    def close(self) -> None:
        """Record that the engine has closed the connection."""
        self._over = True

    # ---- for the calls -----------------------------------------------------------------------------

    def send_headers(
        self, stream: Stream, headers: Sequence[tuple[str, str]], *, end: bool = False, flush: bool = True
    ) -> None:
        """Send headers, or an answer of trailers alone; without ``flush``, they are written with the next data."""
        self._protocol.send_headers(stream, headers, end=end, flush=flush)

    def arrived(self, call: ServerCall) -> None:
        """Handle a request that is complete, or need not be."""
        self._arrivals.pop(call, None)

    def run(self, call: ServerCall, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a function of a request as a task; an unexpected exception ends the request."""
        on_error = functools.partial(self._end_broken, call)
        self.errors.start(self._nursery, function, ended="request", on_error=on_error)

    def _end_broken(self, call: ServerCall, exc: Exception) -> None:
        try:
            call.give_up(internal_error(exc))
        except Exception as failure:
            self.fail(failure)

    def fail(self, exc: Exception) -> None:
        """End the connection because of an unexpected exception."""
        self._protocol.fail(exc)

    def done(self, call: ServerCall) -> None:
        """Record the end of a request."""
        self._calls.discard(call)
        self._arrivals.pop(call, None)
        if not call.lost:
            self._guard.refund()
        if not self._calls:
            self._quiet_since = self.clock()
            self._quiet.set()

    # ---- its life ----------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Serve the connection until its end. A cancellation closes it."""
        # The task that reads from the connection starts its requests' tasks, which inherit this.
        CLIENT.set(self)
        try:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(self._watch)
                await self.transport.serve()
                nursery.cancel_scope.cancel()
        finally:
            # The calls that an unexpected exception has kept from noticing the end of their streams.
            for call in list(self._calls):
                with self.errors.bulkhead("request"):
                    call.drop()

    def charge(self, cost: float) -> None:
        """Deduct the cost of a frame from the client's budget."""
        try:
            self._guard.charge(cost, self.clock())
        except Flooded:
            self.expel("too many frames that ask for nothing")

    def expel(self, reason: str) -> None:
        """Close the connection because of behaviour that no honest client shows."""
        if not self._over:
            _log.warning("a client of the bridge was sent away: %s", reason)
            self._on_expelled(reason)
            self._goodbye(ErrorCodes.ENHANCE_YOUR_CALM, reason)

    def dismiss(self, reason: str) -> None:
        """Close the connection in order; the client may connect again."""
        self._goodbye(ErrorCodes.NO_ERROR, reason)

    def _goodbye(self, code: ErrorCodes, reason: str) -> None:
        if not self._over:
            self._protocol.say_goodbye(code, reason)
        self._protocol.processor.close(reason)

    @protected
    async def drain(self) -> None:
        """Accept no more requests, let running ones end, and close."""
        self.draining = True
        while self._calls:
            self._quiet = anyio.Event()
            await self._quiet.wait()
        self.dismiss("the host is closing")

    @protected
    async def _watch(self) -> None:
        """Close the connection if the client sends no token in time, is idle, or has disappeared."""
        limits = self.limits
        pinged: float | None = None
        heard, heard_at = self.transport.received, self.clock()
        while not self._over:
            now = self.clock()
            if self.transport.received != heard:
                heard, heard_at, pinged = self.transport.received, now, None
            due = [now + limits.receive_timeout]
            if not self.authenticated:
                if now < self.began + limits.handshake_timeout:
                    due.append(self.began + limits.handshake_timeout)
                elif not self._calls:
                    self.dismiss("no request with a token came in time")
                    return
            for call, until in list(self._arrivals.items()):
                if now >= until:
                    call.give_up(RequestTimeout("the request did not arrive in time", details={"phase": "arriving"}))
                else:
                    due.append(until)
            if not self._calls and limits.idle_timeout is not None:
                due.append(self._quiet_since + limits.idle_timeout)
                if now >= due[-1]:
                    self.dismiss("the connection was idle")
                    return
            if self._keepalive is not None:
                if pinged is not None:
                    due.append(pinged + limits.keepalive_timeout)
                    if now >= due[-1]:
                        _log.warning("a client of the bridge does not answer; its connection is closed")
                        self._protocol.processor.close("the client does not answer")
                        return
                else:
                    due.append(heard_at + self._keepalive)
                    if now >= due[-1]:
                        pinged = now
                        self._protocol.ping()
                        continue
            await anyio.sleep_until(min(due))
