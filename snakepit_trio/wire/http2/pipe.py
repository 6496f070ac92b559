"""A stream of gRPC messages on one HTTP/2 stream, without a coroutine per message.

grpclib's :class:`grpclib.protocol.Stream` hands its data to coroutines, one wake-up per message. On the Exchange stream
that costs more than the message, so :class:`FramePipe` takes the stream over: data is cut into messages in the callback
in which it arrives, and all messages that are sent within one tick of the event loop leave as one run of DATA frames.
The HTTP/2 engine, its flow control and its events stay grpclib's; only these seams of it are used:

- ``stream.buffer`` gets what arrives (``add``, ``eof``);
- ``stream.window_updated.set()`` tells that the peer has room again;
- ``stream.wrapper.cancel(error)`` tells that the stream was reset or the connection lost;
- ``connection.write_ready.set()`` tells that the socket takes data again.

Message framing (1 byte of flags, 4 bytes of length, the message):
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from .lean_stream import NOTHING, Notice

if TYPE_CHECKING:
    from grpclib.protocol import Stream

__all__ = ["FramePipe", "Ready", "Turn"]

#: The largest sent DATA frame, in bytes: about the amount that a socket accepts at once, so that little is kept and
#: copied.
_CHUNK = 256 * 1024
_PREFIX = 5
#: Shorter parts of a message are joined as they arrive, because each object costs more than its content.
_SMALL = 4096

_log = logging.getLogger(__name__)


class Ready(asyncio.Event):
    """An event that also calls the waiting pipes."""

    def __init__(self) -> None:
        super().__init__()
        self.pipes: set[FramePipe] = set()

    def set(self) -> None:
        super().set()
        for pipe in tuple(self.pipes):
            pipe._wake()


class Turn:
    """The amount of one connection's received data that may be handled before the event loop's other tasks run.

    Attributes:
        left: The remaining number of frames and messages.
        put_off: The pipes that have messages for a later turn, in order.
    """

    __slots__ = ("left", "put_off")

    def __init__(self, left: int = 0) -> None:
        self.left: int = left
        self.put_off: deque[FramePipe] = deque()


class _Ended:
    """Replaces grpclib's wrapper that cancels a coroutine."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[str], None]) -> None:
        self._callback = callback

    def cancel(self, error: Exception) -> None:
        self._callback(str(error))


class FramePipe:
    """Sends and receives whole messages on an open HTTP/2 stream.

    Everything happens in the event loop's thread and never waits. There are no callbacks before :meth:`start`.

    Args:
        stream: The stream, on a connection made by :class:`PipeProtocol`.
        on_message: Called with each message in order. A ``ValueError`` from it ends the pipe. Any other exception, of
            this or of another callback, is unexpected, and ends the connection.
        on_close: Called exactly once, with the reason: ``""`` if the peer ended its side in order. Not called after
            :meth:`close`.
        max_message: The largest accepted message, in bytes.
        call_soon: Runs a callback at the end of this tick of the event loop.
        on_end: Called when the peer has ended its side in order; the pipe then continues to send. Without it, the pipe
            ends.
        on_room: Called whenever all sent data has left.
        on_refuse: Called once, instead of ``on_close``, when received data violates the rules, with ``"too_long"``,
            ``"compressed"``, ``"cut_off"`` or ``"refused"``, and the reason; the pipe then accepts nothing more, and
            can still send. Without it, the stream is reset.
        on_held: Called after each arrival with the bytes that are kept of an incomplete message; returns whether they
            are allowed. If not, the pipe is refused with ``"too_much"``.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        on_message: Callable[[bytes], None],
        on_close: Callable[[str], None],
        max_message: int,
        call_soon: Callable[[Callable[[], None]], object],
        on_end: Callable[[], None] | None = None,
        on_room: Callable[[], None] | None = None,
        on_refuse: Callable[[str, str], None] | None = None,
        on_held: Callable[[int], bool] | None = None,
    ) -> None:
        assert stream.id is not None
        self._stream = stream
        self._id = stream.id
        self._connection = stream.connection
        self._fail: Callable[[Exception], None] = self._connection.fail  # type: ignore[attr-defined]
        self._h2 = stream._h2_connection
        self._on_message = on_message
        self._on_close = on_close
        self._max_message = max_message
        self._call_soon = call_soon
        self._on_end = on_end
        self._on_room = on_room
        self._on_refuse = on_refuse
        self._on_held = on_held
        self._flushing = False
        self._ending = False
        self._trailers: Sequence[tuple[str, str]] | None = None
        self._closed = False
        self._held = False
        self._unacked = 0
        #: Whether a message was refused on this side.
        self.refused: bool = False
        self._out: deque[bytes | memoryview] = deque()
        #: The bytes that the peer's flow control or the socket holds back.
        self.unsent: int = 0
        self._parts: list[bytes | bytearray] = []
        self._have = 0
        # The size of the message that is arriving in parts; None until it is known.
        self._size: int | None = None
        # Received data for a later turn, or None; and whether the peer's end came after it.
        self._later: bytes | None = None
        self._later_eof = False
        self._turn: Turn = self._connection.turn  # type: ignore[attr-defined]
        ready = self._connection.write_ready
        assert isinstance(ready, Ready)
        self._ready = ready
        ready.pipes.add(self)
        stream.window_updated = Notice(self._wake)  # type: ignore[assignment]
        stream.wrapper = _Ended(self._lost)  # type: ignore[assignment]

    def start(self) -> FramePipe:
        """Start receiving, beginning with data that has already arrived: callbacks may be called from here on."""
        early: Any = self._stream.buffer
        self._stream.buffer = self  # type: ignore[assignment]
        if early is NOTHING:
            return self
        while not early._unacked.empty():
            data, _, ack_size = early._unacked.get_nowait()
            if ack_size:
                # No turn follows this one if nothing more arrives, so it handles everything.
                self._turn.left = len(data)
                self.add(data, ack_size)
        if early._eof:
            self.eof()
        return self

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<FramePipe stream={self._id} {state} unsent={self.unsent}>"

    # ---- sending ---------------------------------------------------------------------------------

    def send(self, *pieces: bytes) -> None:
        """Send one message, which may be in pieces. It leaves at the end of this tick, or when the peer has room.

        Does nothing once closed.
        """
        if self._closed:
            return
        size = sum(map(len, pieces))
        self._out.append(b"\x00%b" % size.to_bytes(4, "big"))
        self._out += pieces
        self.unsent += _PREFIX + size
        self._wake()

    def send_last(self, message: bytes) -> None:
        """Send one message and end this side, in one write if the peer has room."""
        if not self._closed:
            self._ending = True
            self.send(message)

    def end(self, trailers: Sequence[tuple[str, str]] | None = None) -> None:
        """End this side of the stream after the unsent data; a server ends it with trailers."""
        if not self._closed and not self._ending:
            self._ending = True
            self._trailers = trailers
            self._wake()

    def close(self, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        """Stop at once: reset the stream if it is open, drop unsent data, and call nothing back."""
        if self._detach() and self._stream.closable:
            self._stream.reset_nowait(code)

    def _wake(self) -> None:
        if not self._flushing and not self._closed:
            self._flushing = True
            try:
                self._call_soon(self.flush)
            except BaseException:
                self._flushing = False
                raise

    def flush(self) -> None:
        """Write the data that may be written now."""
        self._flushing = False
        # An end is sent after the last data even if the socket accepts no more, because only data is held back.
        if self._closed or (self.unsent and not self._ready.is_set()):
            return
        h2, stream_id = self._h2, self._id
        try:
            if self._connection.is_closing():
                return
            room = h2.local_flow_control_window(stream_id)
            largest = min(h2.max_outbound_frame_size, _CHUNK)
            while self.unsent:
                size = min(self.unsent, room, largest)
                if size <= 0:
                    break
                whole = size == self.unsent
                last = whole and self._ending and self._trailers is None
                if whole:
                    data: bytes | memoryview = b"".join(self._out)
                    self._out.clear()
                    self.unsent = 0
                else:
                    data = self._take(size)
                h2.send_data(stream_id, data, last)
                room -= size
                self._ending = self._ending and not last
                if not whole:
                    self._connection.flush()
                    if not self._ready.is_set():
                        break
            emptied = not self.unsent
            if self._ending and emptied:
                self._ending = False
                if self._trailers is None:
                    h2.end_stream(stream_id)
                else:
                    h2.send_headers(stream_id, self._trailers, end_stream=True)
            self._connection.flush()
            if emptied and self._on_room is not None:
                self._on_room()
        except ProtocolError as exc:
            # The engine's state does not allow sending any more: the peer has reset the stream, or the connection has
            # ended.
            self._lost(str(exc) or type(exc).__name__)
        except Exception as exc:
            self._fail(exc)

    def _take(self, size: int) -> bytes | memoryview:
        """Return the next bytes to send, which are not all."""
        out = self._out
        self.unsent -= size
        taken = []
        while size:
            piece = out.popleft()
            if len(piece) > size:
                view = memoryview(piece)
                out.appendleft(view[size:])
                piece = view[:size]
            taken.append(piece)
            size -= len(piece)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def hold(self) -> None:
        """Let the peer send no more than its window until :meth:`release`; other streams are not affected."""
        self._held = True

    def release(self) -> None:
        """Return the held window."""
        self._held = False
        size, self._unacked = self._unacked, 0
        if size and not self._closed:
            try:
                self._h2.increment_flow_control_window(size, self._id)
                self._connection.flush()
            except ProtocolError:
                pass  # The peer has ended its side.

    # ---- receiving: the interface of grpclib.protocol.Buffer ---------------------------------------

    def add(self, data: bytes, ack_size: int) -> None:
        """Handle received data. ``ack_size`` is its cost of the flow-control window, which is returned at once."""
        try:
            if ack_size and self._held:
                self._h2.increment_flow_control_window(ack_size)
                self._unacked += ack_size
            elif ack_size:
                self._h2.acknowledge_received_data(ack_size, self._id)
        except ProtocolError as exc:
            self._lost(str(exc) or type(exc).__name__)
            return
        if self._later is None:
            self._cut(data)
        else:
            self._later += data

    def _cut(self, data: bytes) -> None:
        """Deliver the messages that these bytes complete, as many as the turn allows; keep the rest."""
        if self._closed or self.refused:
            return
        if self._parts:
            if self._size is None:
                data = b"".join((*self._parts, data))
                self._parts.clear()
            elif (missing := self._size - self._have) > len(data):
                self._keep(data)
                self._have += len(data)
                self._hold_on(_PREFIX + self._have)
                return
            else:
                self._parts.append(data[:missing])
                message = b"".join(self._parts)
                self._parts.clear()
                self._size = None
                self._turn.left -= 1
                if not self._deliver(message):
                    return
                data = data[missing:]
        position, left = 0, len(data)
        turn = self._turn
        while left >= _PREFIX:
            if turn.left <= 0:
                self._later = data[position:]
                turn.put_off.append(self)
                self._hold_on(left)
                return
            turn.left -= 1
            if data[position]:
                self._refuse("compressed", "a message is compressed, or the stream is out of step")
                return
            size = int.from_bytes(data[position + 1 : position + _PREFIX], "big")
            if size > self._max_message:
                self._refuse("too_long", f"a message of {size} bytes is longer than the limit of {self._max_message}")
                return
            position += _PREFIX
            left -= _PREFIX + size
            if left < 0:
                # It is joined when it is complete, so its parts are kept without the preceding data.
                self._size = size
                left += size
                break
            position += size
            if not self._deliver(data[position - size : position]):
                return
        kept = 0 if self._size is None else _PREFIX
        if left or kept:
            self._parts.append(data[position:] if position else data)
        self._have = left
        if self._on_held is not None:
            self._hold_on(kept + left)

    def _keep(self, part: bytes) -> None:
        """Keep a part of an incomplete message."""
        last = self._parts[-1]
        if len(part) >= _SMALL:
            self._parts.append(part)
        elif type(last) is bytearray:
            last += part
        else:
            self._parts.append(bytearray(part))

    def go_on(self) -> None:
        """Deliver the data that was put off, as far as this turn allows."""
        data, self._later = self._later, None
        if data is not None:
            self._cut(data)
        if self._later is None and self._later_eof:
            self._later_eof = False
            self.eof()

    def _deliver(self, message: bytes) -> bool:
        """Deliver a message, and return whether more may come."""
        try:
            self._on_message(message)
        except ValueError as exc:
            self._refuse("refused", str(exc))
            return False
        except Exception as exc:
            self._fail(exc)
            return False
        return not self._closed

    def _hold_on(self, kept: int) -> None:
        if self._on_held is not None and not self._on_held(kept):
            self._refuse("too_much", "too many bytes of requests are waiting to be whole")

    def eof(self) -> None:
        """Handle the peer's end of its side."""
        if self._later is not None:
            self._later_eof = True
            return
        if self.refused:
            return
        if self._parts:
            self._refuse("cut_off", "the stream ended inside a message")
        elif self._on_end is not None:
            if not self._closed:
                try:
                    self._on_end()
                except Exception as exc:
                    self._fail(exc)
        else:
            self._lost("")

    def unacked_size(self) -> int:
        """The received bytes not returned to the flow-control window: always none."""
        return 0

    def _refuse(self, kind: str, reason: str) -> None:
        self.refused = True
        if self._on_refuse is not None:
            self._parts.clear()
            try:
                self._on_refuse(kind, reason or "a message was refused")
            except Exception as exc:
                self._fail(exc)
            return
        if self._stream.closable:
            self._stream.reset_nowait(ErrorCodes.PROTOCOL_ERROR)
        self._lost(reason or "a message was refused")

    def _lost(self, reason: str) -> None:
        if self._detach():
            try:
                self._on_close(reason)
            except Exception as exc:
                # The other streams of this connection still have to be informed of its end.
                self._fail(exc)

    def _detach(self) -> bool:
        if self._closed:
            return False
        self._closed = True
        self._ready.pipes.discard(self)
        self._out.clear()
        self._parts.clear()
        self._later = None
        self.unsent = 0
        return True

    # Coroutines of grpclib that still hold the buffer must not wait on it.
    async def read(self, size: int) -> Any:
        raise AssertionError("the stream belongs to a FramePipe")
