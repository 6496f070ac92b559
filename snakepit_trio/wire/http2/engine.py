"""grpclib's protocol engine for all transports and both ends, without I/O and without a coroutine per message.

:mod:`.pipe` moves the messages of a stream, and :mod:`.lean_h2` handles common DATA frames.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from grpclib.protocol import Connection, EventsProcessor, H2Protocol
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, StreamReset
from h2.exceptions import H2Error
from h2.settings import SettingCodes
from hpack.exceptions import HPACKError
from hyperframe.exceptions import HyperframeError

from snakepit_trio import _forks, _private_names

from .lean_hpack import FixedHeaders
from .lean_stream import LeanStream
from .pipe import FramePipe, Ready, Turn

if TYPE_CHECKING:
    from asyncio import BaseTransport, Transport

    from h2.config import H2Configuration
    from h2.connection import H2Connection

    from snakepit_trio._bulkhead import InternalErrors

    from .lean_h2 import LeanH2Connection

__all__ = ["LoopProtocol", "PipeProtocol", "Processor"]

#: The largest DATA frame of the peer, in bytes: large messages cost one pass of the engine per frame.
MAX_FRAME = 1 << 20
#: The engine's exceptions for a peer that violates the protocol; it can't handle some legal but unusual frames, and
#: asserts on some illegal ones.
_PEERS_FAULT = (H2Error, HPACKError, HyperframeError, ValueError, LookupError, AssertionError, AttributeError)
#: The number of frames and messages of one connection that are handled in one turn; and the count of a frame that h2
#: itself handles.
_TURN, _SLOW = 128, 8

_log = logging.getLogger(__name__)
_private_names.require("grpclib")


def _choose_h2() -> Callable[[H2Configuration], H2Connection]:
    """Return h2's connection with faster paths if the installed h2 and hpack have the names that these need, else plain
    h2's.
    """
    for use in ("h2", "hpack"):
        lacking = _private_names.missing(use)
        if lacking:
            _log.warning(
                "%s %s has no %s: %s, which takes longer", *_private_names.release(use), ", ".join(lacking),
                _private_names.USES[use].fallback,
            )  # fmt: skip
            from .plain_h2 import PlainH2Connection

            return PlainH2Connection
    from .lean_h2 import LeanH2Connection

    return LeanH2Connection


_H2 = _choose_h2()
# hpack writes every header into its debug log, including the token.
logging.getLogger("hpack").setLevel(logging.INFO)


class _Connection(Connection):
    """grpclib's connection, which may be flushed after its end: its own processor does that after a GOAWAY.

    Attributes:
        fail: See :meth:`PipeProtocol.fail`.
        turn: What its pipes may take now.
        ended: It is over.
    """

    fail: Callable[[Exception], None]
    turn: Turn
    ended: bool = False

    def flush(self) -> None:
        if not self.ended:
            super().flush()

    def close(self) -> None:
        self.ended = True
        super().close()


class Processor(EventsProcessor):
    """grpclib's processor, whose streams may be released while it tells each of them that the connection is over."""

    def close(self, reason: str = "Connection closed") -> None:
        self.streams = dict(self.streams)
        super().close(reason)

    def process_stream_reset(self, event: StreamReset) -> None:
        """Handle a reset by the peer, or a violation of the stream's rules."""
        stream = self.streams.get(event.stream_id)
        if event.remote_reset and isinstance(stream, LeanStream):
            stream.reset_code = int(event.error_code or 0)
            # A peer that refuses a stream has not begun to answer it.
            stream.unprocessed = stream.reset_code == ErrorCodes.REFUSED_STREAM and stream.headers is None
        super().process_stream_reset(event)

    def process_connection_terminated(self, event: ConnectionTerminated) -> None:
        """Handle the peer's end of the connection, with its reason."""
        last = event.last_stream_id
        if last is not None:
            for stream_id, stream in self.streams.items():
                if stream_id > last and isinstance(stream, LeanStream):
                    stream.unprocessed = True
        said = ascii((event.additional_data or b"").decode("ascii", "replace"))[1:-1][:100]
        self.close(f"the other side ended the connection: {said or ErrorCodes(event.error_code or 0).name}")


class PipeProtocol(H2Protocol):
    """grpclib's protocol engine, with large frames allowed and a socket back-pressure that pipes hear of.

    Whatever the peer sends, only the connection ends: no exception leaves :meth:`data_received`. Nor does it hold others up: a
    read of small frames or messages is taken in turns. Whoever calls :meth:`data_received` lets other tasks run, then calls
    :meth:`proceed`, for as long as something is :attr:`unfinished`, and reads no more before that.

    """

    #: The largest frame of the peer, in bytes.
    max_frame = MAX_FRAME
    #: Whether received data is left for a later turn.
    unfinished: bool = False

    @functools.cached_property
    def errors(self) -> InternalErrors:
        """Reports unexpected exceptions; hosts set their own."""
        # Not before it is needed: a worker has no event loop of Trio's or anyio's unless its tools need one.
        from snakepit_trio._bulkhead import InternalErrors

        return InternalErrors()

    def settings(self) -> dict[SettingCodes | int, int]:
        """Return the settings for the peer."""
        return {
            SettingCodes.INITIAL_WINDOW_SIZE: self.config.http2_stream_window_size,
            SettingCodes.MAX_FRAME_SIZE: self.max_frame,
        }

    def make_processor(self) -> EventsProcessor:
        """Return the processor of the engine's events."""
        return Processor(self.handler, self.connection)

    def connection_made(self, transport: BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # The event loop has made it, on either side.
            _forks.keep(sock.fileno())
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        h2 = _H2(self.h2_config)
        h2.initiate_connection()
        h2.increment_flow_control_window(
            self.config.http2_connection_window_size - h2.local_settings.initial_window_size
        )
        h2.update_settings(self.settings())
        self._turn = Turn()
        self._rest = b""
        self.connection: _Connection = _Connection(h2, cast("Transport", transport), config=self.config)
        self.connection.fail = self.fail
        self.connection.turn = self._turn
        self.connection.write_ready = Ready()
        self.connection.write_ready.set()
        self.connection.flush()
        self.connection.initialize()
        self.processor: EventsProcessor = self.make_processor()

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self.connection.is_closing()

    @property
    def peers_max_streams(self) -> int:
        """The number of streams that the peer accepts at once, as far as known."""
        found: int = self.connection._connection.remote_settings.max_concurrent_streams
        return found

    def open_stream(self, headers: FixedHeaders) -> tuple[LeanStream, Callable[[], None]]:
        """Open a stream with a request's headers; return it with a function that releases it.

        Raises:
            H2Error: The peer accepts no more streams.
        """
        connection = self.connection
        stream = LeanStream(connection, cast("LeanH2Connection", connection._connection).open_stream(headers))
        return stream, self.processor.register(stream)

    def data_received(self, data: bytes) -> None:
        """Handle as much of this data as one turn allows."""
        self._rest = self._rest + data if self._rest else data
        self.proceed()

    def proceed(self) -> None:
        """Handle as much of the received data as one turn allows; data after the end is dropped."""
        turn = self._turn
        turn.left = _TURN
        data, self._rest = self._rest, b""
        try:
            while turn.put_off and turn.left > 0:
                turn.put_off.popleft().go_on()
            self._rest = self._take_data(data)
        except _PEERS_FAULT as exc:
            _log.debug("the peer broke the protocol", exc_info=True)
            self.processor.close(f"protocol error: {type(exc).__name__}")
        except Exception as exc:
            self.fail(exc)
        if self.connection.ended:
            self._rest = b""
            turn.put_off.clear()
        self.unfinished = bool(self._rest or turn.put_off)

    def fail(self, exc: Exception) -> None:
        """End only this connection because of an unexpected exception."""
        self.errors.report(exc, "connection")
        with self.errors.bulkhead("connection"):
            self.processor.close(f"internal error: {type(exc).__name__}")

    def _take_data(self, data: bytes) -> bytes:
        """Handle frames until the turn is over, and return the rest."""
        turn = self._turn
        h2: Any = self.connection._connection
        # h2 takes nothing out of its buffer once the peer has broken the protocol.
        while data and turn.left > 0 and not self.connection.ended:
            rest = h2.take_data(data, self._taker, self.processor.process, turn)
            if rest is not data:
                self.connection.flush()
            if not rest or turn.left <= 0:
                return cast("bytes", rest)
            # The next frame is for h2 itself.
            turn.left -= _SLOW
            size = h2.next_frame(rest)
            super().data_received(rest[:size])
            data = rest[size:]
            # h2 looks at a frame's length when it has all of it; what is not HTTP/2 would be waited for, and kept, till then.
            if h2.arriving > self.max_frame:
                raise ValueError("a frame is longer than was agreed")
        return data

    def _taker(self, stream_id: int) -> Callable[[bytes, int], None] | None:
        stream = self.processor.streams.get(stream_id)
        return stream.buffer.add if stream is not None and isinstance(stream.buffer, FramePipe) else None


class LoopProtocol(PipeProtocol):
    """The engine fed by asyncio's loop: the rest of a turn is handled in the loop's next passes."""

    _transport: Transport
    _going_on = False

    def connection_made(self, transport: BaseTransport) -> None:
        self._transport = cast("Transport", transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.unfinished and not self._going_on:
            self._going_on = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self.proceed()
        if self.unfinished:
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self._going_on = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        # All received data counts.
        while self.unfinished:
            self.proceed()
        super().connection_lost(exc)
