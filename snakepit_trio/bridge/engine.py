"""The protocol engine with the limits of one client's connection, and accounts of what arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, EventsProcessor
from h2.config import H2Configuration
from h2.events import DataReceived, Event, RequestReceived, TrailersReceived, UnknownFrameReceived
from h2.settings import SettingCodes

from snakepit_trio.wire.http2.engine import PipeProtocol, Processor
from snakepit_trio.wire.http2.lean_stream import LeanStream

from .guard import COSTS, EMPTY_DATA

if TYPE_CHECKING:
    from .connection import BridgeConnection

__all__ = ["BridgeProtocol"]

#: What a client may have in flight before we take it, in bytes: in one stream, and in all.
_STREAM_WINDOW = 1024 * 1024
_WINDOW = 4 * 1024 * 1024
_MAX_FRAME = 256 * 1024
_HEADERS, _CONTINUATION = 1, 9


class _Processor(Processor):
    """grpclib's processor, which also keeps accounts of what arrives."""

    def __init__(self, handler: AbstractHandler, connection: Any, owner: BridgeConnection) -> None:
        super().__init__(handler, connection)
        self._owner = owner

    def process(self, event: Event) -> None:
        owner = self._owner
        cost = COSTS.get(type(event), 0.0)
        if isinstance(event, DataReceived) and not event.data and event.stream_ended is None:
            cost = EMPTY_DATA
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


class BridgeProtocol(PipeProtocol):
    """The engine with this connection's limits."""

    max_frame = _MAX_FRAME

    def __init__(self, owner: BridgeConnection) -> None:
        super().__init__(
            owner,
            # With its defaults for servers grpclib asks for an asyncio loop, for a keepalive of its own.
            Configuration(
                http2_connection_window_size=_WINDOW, http2_stream_window_size=_STREAM_WINDOW
            ).__for_client__(),
            H2Configuration(
                client_side=False,
                # Bytes: what a client puts into its headers need not be text.
                header_encoding=None,
                # By ourselves, and once for headers that are the same in each request: it costs as much as reading them.
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            ),
        )
        self._owner = owner

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
        return _Processor(self.handler, self.connection, self._owner)

    def proceed(self) -> None:
        super().proceed()
        owner = self._owner
        frames = self.connection._connection.incoming_buffer
        # A block of headers is kept until it is whole: neither one frame of it nor all of them may be too long.
        waiting = frames._data
        kept = sum(len(frame.data) for frame in frames._headers_buffer)
        if len(waiting) >= 9 and waiting[3] in (_HEADERS, _CONTINUATION):
            kept += int.from_bytes(waiting[:3], "big")
        if kept > 2 * owner.limits.max_header_size:
            owner.expel("headers are too long")
