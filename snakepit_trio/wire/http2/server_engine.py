"""The protocol engine for a server whose client is not trusted: limits, and the cost of received frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, EventsProcessor
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived, TrailersReceived, UnknownFrameReceived
from h2.exceptions import H2Error
from h2.settings import SettingCodes

from .engine import PipeProtocol, Processor
from .lean_stream import LeanStream, Stream

if TYPE_CHECKING:
    from .lean_h2 import LeanH2Connection

__all__ = ["ConnectionHandler", "ServerLimits", "ServerProtocol"]

#: The bytes that a client may have in flight, in one stream and in all.
_STREAM_WINDOW = 1024 * 1024
_WINDOW = 4 * 1024 * 1024
_MAX_FRAME = 256 * 1024


class ServerLimits(Protocol):
    """The limits of one connection."""

    @property
    def max_streams(self) -> int:
        """The largest number of simultaneous requests."""

    @property
    def max_header_size(self) -> int:
        """The largest size of one request's headers, in bytes."""


class ConnectionHandler(AbstractHandler):
    """The engine's callbacks on the server's side."""

    limits: ServerLimits

    def charge(self, cost: float) -> None:
        """Deduct the cost of a frame from the client's budget."""
        raise NotImplementedError

    def check_trailers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Check the trailers with which a client has ended a request."""
        raise NotImplementedError

    def expel(self, reason: str) -> None:
        """Close the connection because of behaviour that no honest client shows."""
        raise NotImplementedError

    def fail(self, exc: Exception) -> None:
        """End the connection because of an unexpected exception."""
        raise NotImplementedError


class _Processor(Processor):
    """grpclib's processor, which also charges for received frames."""

    def __init__(self, handler: ConnectionHandler, connection: Any, costs: Mapping[type, float], empty: float) -> None:
        super().__init__(handler, connection)
        self._owner = handler
        self._costs = costs
        self._empty = empty

    def process(self, event: Event) -> None:
        owner = self._owner
        cost = self._costs.get(type(event), 0.0)
        if isinstance(event, DataReceived) and not event.data and event.stream_ended is None:
            cost = self._empty
        if cost:
            owner.charge(cost)
        elif isinstance(event, TrailersReceived):
            owner.check_trailers(event.headers)
        if not isinstance(event, UnknownFrameReceived) and type(event) in getattr(self, "processors", ()):
            super().process(event)

    def process_request_received(self, event: RequestReceived) -> None:
        stream = LeanStream(self.connection, event.stream_id)
        try:
            self.handler.accept(stream, cast("Any", event.headers), self.register(stream))
        except Exception as exc:
            self._owner.fail(exc)


class ServerProtocol(PipeProtocol):
    """The engine with this connection's limits.

    Args:
        owner: Handles the engine's callbacks.
        costs: The cost of each kind of event.
        empty_data: The cost of an empty DATA frame that ends nothing.
    """

    max_frame = _MAX_FRAME

    def __init__(self, owner: ConnectionHandler, costs: Mapping[type, float], *, empty_data: float) -> None:
        super().__init__(
            owner,
            # With its defaults for servers grpclib needs an asyncio loop, for its own keepalive.
            Configuration(
                http2_connection_window_size=_WINDOW, http2_stream_window_size=_STREAM_WINDOW
            ).__for_client__(),
            H2Configuration(
                client_side=False,
                # Bytes, because a client's headers need not be text.
                header_encoding=None,
                # Validated here, and only once for headers that are the same in each request, because it costs as much as
                # decoding them.
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            ),
        )
        self._owner = owner
        self._costs = costs
        self._empty_data = empty_data

    def settings(self) -> dict[SettingCodes | int, int]:
        limits = self._owner.limits
        return {
            **super().settings(),
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_size,
        }

    def make_processor(self) -> EventsProcessor:
        h2 = self.connection._connection
        h2.decoder.max_header_list_size = self._owner.limits.max_header_size
        return _Processor(self._owner, self.connection, self._costs, self._empty_data)

    def proceed(self) -> None:
        super().proceed()
        owner = self._owner
        h2 = cast("LeanH2Connection", self.connection._connection)
        # A block of headers is kept until it is complete: neither one frame of it nor all of them may be too long.
        if h2.unfinished_headers > 2 * owner.limits.max_header_size:
            owner.expel("headers are too long")

    @property
    def peers_header_limit(self) -> int | None:
        """The bytes of headers that the client accepts; None if it has not said."""
        found: int | None = self.connection._connection.remote_settings.max_header_list_size
        return found

    def send_headers(
        self, stream: Stream, headers: Sequence[tuple[str, str]], *, end: bool = False, flush: bool = True
    ) -> None:
        """Send headers, or an answer of trailers alone; without ``flush``, they are written with the next data. Does
        nothing on an ended stream.
        """
        connection = self.connection
        if connection.is_closing() or stream.id not in connection._connection.streams:
            return
        try:
            connection._connection.send_headers(stream.id, headers, end_stream=end)
        except H2Error:
            return  # The stream has ended.
        if flush:
            connection.flush()

    def say_goodbye(self, code: ErrorCodes, reason: str) -> None:
        """Send the client the end of the connection and its reason, as far as it still reads."""
        connection = self.connection
        if not connection.is_closing():
            try:
                connection._connection.close_connection(error_code=code, additional_data=reason.encode()[:100])
                connection.flush()
            except H2Error:
                pass

    def ping(self) -> None:
        """Send the client a ping."""
        connection = self.connection
        if not connection.is_closing():
            connection._connection.ping(b"snakepit")
            connection.flush()
