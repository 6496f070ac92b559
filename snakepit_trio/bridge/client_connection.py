"""One client's connection: grpclib's engine on the server's side, what is let in, and what ends it.

grpclib's own server makes an asyncio task for each request. Here the engine is fed by a socket of either event loop
(:mod:`snakepit_trio.wire.sockets`), and each request is a task in the connection's nursery. A request that is refused, for
its token or for anything else in its headers, costs neither a task nor any of its body.
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

#: Before a client has shown its token, so much is read at once, in bytes, and an RPC's message is no longer than the other.
_FIRST_READS = 4 * 1024


_Headers = list[tuple[bytes, bytes]]


@attrs.frozen(kw_only=True)
class Limits:
    """What one connection may do; see :class:`snakepit_trio.BridgeConfig` for each."""

    max_streams: int
    max_message: int
    max_header_size: int
    handshake_timeout: float
    idle_timeout: float | None
    receive_timeout: float
    keepalive_interval: float | None
    keepalive_timeout: float


class Services(Protocol):
    """What a bridge offers."""

    methods: Mapping[bytes, Method]
    redactor: Redactor
    errors: InternalErrors


class BridgeConnection(ConnectionHandler):
    """A connection that was accepted.

    Args:
        transport: Its socket, secured already.
        services: What is offered.
        limits: What it may do.
        share: Where the bytes of its requests are counted, and those of the answers that it has not read.
        token: What it must show, as ``Bearer TOKEN``.
        nursery: Where its requests' tasks run.
        keepalive: Whether a peer that is gone may go unnoticed by the system: TCP.
        on_known: Called once, when it has shown the token.
        on_expelled: Called when it is sent away for what it does, with what that is.
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
        # The headers, but for time-outs, that were looked at last.
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
        """How many requests it has."""
        return len(self._calls)

    @property
    def trailer_room(self) -> int:
        """Bytes of trailers that the client takes."""
        theirs = self._protocol.peers_header_limit
        return status.DEFAULT_ROOM if theirs is None else max(min(theirs // 2, 24 * 1024), 1024)

    # ---- requests, as the engine tells of them -----------------------------------------------------

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        """A request's headers have arrived."""
        checked = self._checked(headers)
        if checked is None:
            release_stream()
            return
        given = dict(checked)
        if len(self._calls) >= self.limits.max_streams:
            # The peer has reset some whose tasks are still ending.
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
        """Headers that are as HTTP/2 wants them (RFC 9113, 8.2 and 8.3); None for others, whose connection ends.

        White space around a value is taken off, as gRPC allows: an odd token must not cost a client its other calls.
        """
        # A client's requests differ in their time-outs only, which are looked at by themselves.
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
        """A client has ended a request with trailers."""
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
        """The peer has reset a stream; its call has been told."""

    def close(self) -> None:
        """The engine is done with the connection."""
        self._over = True

    # ---- for the calls -----------------------------------------------------------------------------

    def send_headers(
        self, stream: Stream, headers: Sequence[tuple[str, str]], *, end: bool = False, flush: bool = True
    ) -> None:
        """Send headers, or an answer that is nothing but its trailers; without ``flush``, when more is sent."""
        self._protocol.send_headers(stream, headers, end=end, flush=flush)

    def arrived(self, call: ServerCall) -> None:
        """A request is whole, or needs not be."""
        self._arrivals.pop(call, None)

    def run(self, call: ServerCall, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run something of a request's as a task, in which an unexpected exception ends the request."""
        on_error = functools.partial(self._end_broken, call)
        self.errors.start(self._nursery, function, ended="request", on_error=on_error)

    def _end_broken(self, call: ServerCall, exc: Exception) -> None:
        try:
            call.give_up(internal_error(exc))
        except Exception as failure:
            self.fail(failure)

    def fail(self, exc: Exception) -> None:
        """End the connection by an exception that nobody expected."""
        self._protocol.fail(exc)

    def done(self, call: ServerCall) -> None:
        """A request is over."""
        self._calls.discard(call)
        self._arrivals.pop(call, None)
        if not call.lost:
            self._guard.refund()
        if not self._calls:
            self._quiet_since = self.clock()
            self._quiet.set()

    # ---- its life ----------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Serve it until it is over. A cancellation closes it."""
        # What reads from the connection makes its requests, and starts their tasks.
        CLIENT.set(self)
        try:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(self._watch)
                await self.transport.serve()
                nursery.cancel_scope.cancel()
        finally:
            # Those that have not heard of the end of their streams, for an exception that nobody expected.
            for call in list(self._calls):
                with self.errors.bulkhead("request"):
                    call.drop()

    def charge(self, cost: float) -> None:
        """Something came that costs the client some of its budget."""
        try:
            self._guard.charge(cost, self.clock())
        except Flooded:
            self.expel("too many frames that ask for nothing")

    def expel(self, reason: str) -> None:
        """End it: the client does what no honest one does."""
        if not self._over:
            _log.warning("a client of the bridge was sent away: %s", reason)
            self._on_expelled(reason)
            self._goodbye(ErrorCodes.ENHANCE_YOUR_CALM, reason)

    def dismiss(self, reason: str) -> None:
        """End it in good order: the client may come again."""
        self._goodbye(ErrorCodes.NO_ERROR, reason)

    def _goodbye(self, code: ErrorCodes, reason: str) -> None:
        if not self._over:
            self._protocol.say_goodbye(code, reason)
        self._protocol.processor.close(reason)

    @protected
    async def drain(self) -> None:
        """Take no more requests, let those that run end, and go."""
        self.draining = True
        while self._calls:
            self._quiet = anyio.Event()
            await self._quiet.wait()
        self.dismiss("the host is closing")

    @protected
    async def _watch(self) -> None:
        """End it when it shows no token, does nothing, or is not there any more."""
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
