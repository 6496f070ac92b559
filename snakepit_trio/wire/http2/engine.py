"""grpclib's protocol engine as every transport and both ends use it: it does no I/O, and needs no coroutine for a message.

See :mod:`.pipe` for how messages of a stream are moved, and :mod:`.lean_h2` for the common DATA frame.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from grpclib.protocol import AbstractHandler, Connection, EventsProcessor, H2Protocol
from h2.exceptions import H2Error
from h2.settings import SettingCodes
from hpack.exceptions import HPACKError
from hyperframe.exceptions import HyperframeError

from snakepit_trio._bulkhead import InternalErrors

from .lean_h2 import LeanH2Connection
from .pipe import FramePipe, Ready

if TYPE_CHECKING:
    from asyncio import BaseTransport, Transport

    from grpclib.config import Configuration
    from h2.config import H2Configuration

__all__ = ["PipeProtocol", "Processor"]

#: What we let the peer put in one DATA frame, in bytes: large messages cost one pass of the engine per frame.
MAX_FRAME = 1 << 20
#: What the engine raises for a peer that breaks the protocol; it has no answer to some legal but unusual frames, and asserts
#: on some illegal ones.
_PEERS_FAULT = (H2Error, HPACKError, HyperframeError, ValueError, LookupError, AssertionError, AttributeError)

_log = logging.getLogger(__name__)
# hpack writes every header into its debug log, the token among them.
logging.getLogger("hpack").setLevel(logging.INFO)


class _Connection(Connection):
    """grpclib's connection, which may be flushed after its end: its own processor does that after a GOAWAY.

    Attributes:
        fail: See :meth:`PipeProtocol.fail`.
    """

    fail: Callable[[Exception], None]

    def flush(self) -> None:
        if hasattr(self, "_transport"):
            super().flush()


class Processor(EventsProcessor):
    """grpclib's processor, whose streams may be released while it tells each of them that the connection is over."""

    def close(self, reason: str = "Connection closed") -> None:
        self.streams = dict(self.streams)
        super().close(reason)


class PipeProtocol(H2Protocol):
    """grpclib's protocol engine, with large frames allowed and a socket back-pressure that pipes hear of.

    Whatever the peer sends, only the connection ends: no exception leaves :meth:`data_received`.

    Attributes:
        errors: Where its owner wants to hear of unexpected exceptions.
    """

    #: What we let the peer put in one frame, in bytes.
    max_frame = MAX_FRAME

    def __init__(self, handler: AbstractHandler, config: Configuration, h2_config: H2Configuration) -> None:
        super().__init__(handler, config, h2_config)
        self.errors = InternalErrors()

    def settings(self) -> dict[SettingCodes | int, int]:
        """What we tell the peer first."""
        return {
            SettingCodes.INITIAL_WINDOW_SIZE: self.config.http2_stream_window_size,
            SettingCodes.MAX_FRAME_SIZE: self.max_frame,
        }

    def make_processor(self) -> EventsProcessor:
        """What takes the engine's events."""
        return Processor(self.handler, self.connection)

    def connection_made(self, transport: BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        h2 = LeanH2Connection(config=self.h2_config)
        h2.initiate_connection()
        h2.increment_flow_control_window(
            self.config.http2_connection_window_size - h2.local_settings.initial_window_size
        )
        h2.update_settings(self.settings())
        self.connection = _Connection(h2, cast("Transport", transport), config=self.config)
        self.connection.fail = self.fail
        self.connection.write_ready = Ready()
        self.connection.write_ready.set()
        self.connection.flush()
        self.connection.initialize()
        self.processor = self.make_processor()

    def data_received(self, data: bytes) -> None:
        try:
            data = self._take_data(data)
            if not data:
                return
            super().data_received(data)
            # h2 looks at a frame's length when it has all of it; what is not HTTP/2 would be waited for, and kept, till then.
            waiting = self.connection._connection.incoming_buffer._data
            if len(waiting) >= 9 and int.from_bytes(waiting[:3], "big") > self.max_frame:
                raise ValueError("a frame is longer than was agreed")
        except _PEERS_FAULT as exc:
            _log.debug("the peer broke the protocol", exc_info=True)
            self.processor.close(f"protocol error: {type(exc).__name__}")
        except Exception as exc:
            self.fail(exc)

    def fail(self, exc: Exception) -> None:
        """End the connection by an exception that nobody expected: it, and nothing else."""
        self.errors.report(exc, "connection")
        with self.errors.bulkhead("connection"):
            self.processor.close(f"internal error: {type(exc).__name__}")

    def _take_data(self, data: bytes) -> bytes:
        h2 = self.connection._connection
        rest = h2.take_data(data, self._taker, self.processor.process)  # type: ignore[attr-defined]
        if rest is not data:
            self.connection.flush()
        return cast("bytes", rest)

    def _taker(self, stream_id: int) -> Callable[[bytes, int], None] | None:
        stream = self.processor.streams.get(stream_id)
        return stream.buffer.add if stream is not None and isinstance(stream.buffer, FramePipe) else None
