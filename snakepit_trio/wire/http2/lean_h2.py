"""h2's connection with a direct path for the common frames.

h2 creates a frame, its flags, events and their texts for each frame, which costs several times the rest of a small
message. Nearly all frames of an Exchange stream are alike: DATA without flags, on a stream that is open in both
directions. The frames of a unary RPC are too: HEADERS in one piece, and DATA that ends a side. Those are read and
written here directly; every other frame, and every possibly invalid one, goes to h2 itself. The windows of flow
control, the streams and their states are h2's own, so both paths may alternate.

The frames: https://www.rfc-editor.org/rfc/rfc9113#section-6.1 and 6.2
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionInputs, ConnectionState, H2Connection, _decode_headers
from h2.events import Event
from h2.exceptions import ProtocolError, TooManyStreamsError
from h2.stream import H2Stream, StreamInputs, StreamState

from .lean_hpack import FixedHeaders, RememberingDecoder
from .pipe import Turn

__all__ = ["LeanH2Connection"]

_OPEN = (ConnectionState.CLIENT_OPEN, ConnectionState.SERVER_OPEN)
_MAY_RECEIVE = (StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL)
_MAY_SEND = (StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE)
_HEAD = struct.Struct(">HBHI")
_HEAD_SIZE = _HEAD.size
_END_STREAM = 1
#: HEADERS and CONTINUATION.
_HEADER_FRAMES = 1, 9
#: HEADERS in one piece, alone or as the end of a side.
_WHOLE_HEADERS, _LAST_HEADERS = 0x0104, 0x0105
_HEADERS = _WHOLE_HEADERS, _LAST_HEADERS
#: Ended streams are removed at this number of both kinds, because the search visits all streams.
_FEW = 16


class LeanH2Connection(H2Connection):
    """h2's connection, with a direct path for most DATA frames and for constant headers."""

    #: The stream whose DATA frame is arriving, and the number of its missing bytes.
    _stream_inside = 0
    _left_inside = 0

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.decoder: RememberingDecoder = RememberingDecoder(self.decoder.max_header_list_size)

    def open_stream(self, headers: FixedHeaders) -> int:
        """Open a stream with a request's headers, and return its number.

        Raises:
            ProtocolError: As from h2's ``send_headers``.
        """
        stream_id = self.get_next_available_stream_id()
        if self.encoder.header_table.resized or len(headers.block) > self.max_outbound_frame_size:
            super().send_headers(stream_id, headers)
            return stream_id
        most = self.remote_settings.max_concurrent_streams
        if len(self.streams) >= min(most, _FEW) and self.open_outbound_streams >= most:
            raise TooManyStreamsError(f"Max outbound streams is {most}")
        if self.state_machine.state not in _OPEN:
            self.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        stream = self._begin_new_stream(stream_id, AllowedStreamIDs.ODD)
        stream.state_machine.process_input(StreamInputs.SEND_HEADERS)
        stream.request_method = b"POST"
        self._write_headers(stream_id, headers.block, _WHOLE_HEADERS)
        return stream_id

    def _write_headers(self, stream_id: int, block: bytes, kind_and_flags: int) -> None:
        size = len(block)
        self._data_to_send += _HEAD.pack(size >> 8, size & 255, kind_and_flags, stream_id)
        self._data_to_send += block

    def send_headers(  # type: ignore[override]
        self, stream_id: int, headers: Any, end_stream: bool = False, **priority: Any
    ) -> None:
        """As h2's own."""
        stream = self.streams.get(stream_id)
        if (
            type(headers) is not FixedHeaders
            or priority
            or stream is None
            or self.config.client_side
            # The next block has to tell the peer of a table's new size.
            or self.encoder.header_table.resized
            or len(headers.block) > self.max_outbound_frame_size
        ):
            super().send_headers(stream_id, headers, end_stream, **priority)
            return
        if self.state_machine.state not in _OPEN:
            self.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        stream.state_machine.process_input(StreamInputs.SEND_HEADERS)
        if end_stream:
            stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
        self._write_headers(stream_id, headers.block, _LAST_HEADERS if end_stream else _WHOLE_HEADERS)

    def send_data(
        self, stream_id: int, data: bytes | memoryview, end_stream: bool = False, pad_length: int | None = None
    ) -> None:
        """As h2's own."""
        size = len(data)
        stream = self.streams.get(stream_id)
        if (
            pad_length is not None
            or stream is None
            or stream.state_machine.state not in _MAY_SEND
            or self.state_machine.state not in _OPEN
            or not 0 < size <= self.max_outbound_frame_size
            or size > self.outbound_flow_control_window
            or size > stream.outbound_flow_control_window
        ):
            super().send_data(stream_id, data, end_stream, pad_length)
            return
        stream.outbound_flow_control_window -= size
        self.outbound_flow_control_window -= size
        if end_stream:
            stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
        self._data_to_send += _HEAD.pack(size >> 8, size & 255, _END_STREAM if end_stream else 0, stream_id)
        self._data_to_send += data

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        """As h2's own."""
        stream = self.streams.get(stream_id)
        if stream is not None and stream.open and acknowledged_size > 0:
            both, own = self._inbound_flow_control_window_manager, stream._inbound_window_manager
            if (
                both.current_window_size > 0
                and own.current_window_size > 0
                and both._bytes_processed + acknowledged_size < both.max_window_size // 2
                and own._bytes_processed + acknowledged_size < own.max_window_size // 2
            ):
                # The peer has room enough, and is not told of more yet.
                both._bytes_processed += acknowledged_size
                own._bytes_processed += acknowledged_size
                return
        super().acknowledge_received_data(acknowledged_size, stream_id)

    def take_data(
        self,
        data: bytes,
        taker: Callable[[int], Callable[[bytes, int], None] | None],
        process: Callable[[Event], object],
        turn: Turn,
    ) -> bytes:
        """Handle the common frames at the beginning of the data, and return the rest, which is for :meth:`receive_data` or
        for later.

        The received part of an incomplete frame is handled at once, so large frames are never assembled.

        Args:
            data: The received data.
            taker: Returns, for a stream's number, a function that takes its data and their number of bytes; None: leave
                it to h2.
            process: Called with each event of other frames than DATA, and with the end of a side.
            turn: The number of frames that may be handled now; the rest is for a later turn.

        Raises:
            ProtocolError: The peer has violated the protocol, including flow control.
        """
        buffer = self.incoming_buffer
        if buffer._data or buffer._preamble_len or buffer._headers_buffer:
            return data
        position, end = 0, len(data)
        if self._left_inside:
            position = min(self._left_inside, end)
            self._left_inside -= position
            self._take_part(data[:position], taker(self._stream_inside))
        while end - position >= _HEAD_SIZE and turn.left > 0 and self.state_machine.state in _OPEN:
            high, low, kind_and_flags, stream_id = _HEAD.unpack_from(data, position)
            size = high << 8 | low
            stop = position + _HEAD_SIZE + size
            stream = self.streams.get(stream_id)
            if size > self.max_inbound_frame_size or (kind_and_flags and stop > end):
                break
            if kind_and_flags in _HEADERS:
                if stream is None:
                    if self.config.client_side or stream_id <= self.highest_inbound_stream_id:
                        break
                elif stream.state_machine.state not in _MAY_RECEIVE:
                    break
                block = data[position + _HEAD_SIZE : stop]
                position = stop
                turn.left -= 1
                for event in self._receive_headers(stream_id, stream, block, kind_and_flags == _LAST_HEADERS):
                    process(event)
                continue
            if (
                kind_and_flags > _END_STREAM
                # An empty frame that ends nothing has no purpose, and has to be counted.
                or not (size or kind_and_flags)
                or stream is None
                or stream.state_machine.state not in _MAY_RECEIVE
                or stream._expected_content_length is not None
            ):
                break
            take = taker(stream_id)
            if take is None:
                break
            self._inbound_flow_control_window_manager.window_consumed(size)
            stream._inbound_window_manager.window_consumed(size)
            ended = stream.state_machine.process_input(StreamInputs.RECV_END_STREAM) if kind_and_flags else ()
            if stop > end:
                self._stream_inside, self._left_inside = stream_id, stop - end
                stop = end
            part = data[position + _HEAD_SIZE : stop]
            position = stop
            turn.left -= 1
            take(part, len(part))
            for event in ended:
                process(event)
        return data[position:] if position else data

    def next_frame(self, data: bytes) -> int:
        """Return the number of these bytes that belong to the frame that h2's buffer is waiting for, or has begun."""
        buffer = self.incoming_buffer
        if buffer._preamble_len:
            return int(buffer._preamble_len)
        waiting = buffer._data
        head = bytes(waiting[:_HEAD_SIZE])
        head += data[: _HEAD_SIZE - len(head)]
        # While only a part of the frame's head has arrived, all data belongs to it.
        return _HEAD_SIZE + int.from_bytes(head[:3], "big") - len(waiting) if len(head) == _HEAD_SIZE else len(data)

    @property
    def arriving(self) -> int:
        """The size of the incomplete frame that is arriving, from its head."""
        waiting = self.incoming_buffer._data
        return int.from_bytes(waiting[:3], "big") if len(waiting) >= _HEAD_SIZE else 0

    @property
    def unfinished_headers(self) -> int:
        """The size of an incomplete block of headers, including the rest of its last frame."""
        buffer = self.incoming_buffer
        waiting = buffer._data
        kept = sum(len(frame.data) for frame in buffer._headers_buffer)
        if len(waiting) >= _HEAD_SIZE and waiting[3] in _HEADER_FRAMES:
            kept += int.from_bytes(waiting[:3], "big")
        return kept

    def _take_part(self, part: bytes, take: Callable[[bytes, int], None] | None) -> None:
        if take is not None:
            take(part, len(part))
        elif self.state_machine.state in _OPEN:
            # Its stream has been reset meanwhile; the connection's window still has to be returned.
            self.acknowledge_received_data(len(part), self._stream_inside)

    def _receive_headers(self, stream_id: int, stream: H2Stream | None, block: bytes, last: bool) -> list[Event]:
        """Do as h2 does, for headers in one piece; ``stream`` is None if they open one."""
        config = self.config
        try:
            if stream is None:
                most = self.local_settings.max_concurrent_streams
                if len(self.streams) >= min(most, _FEW) and self.open_inbound_streams >= most:
                    raise TooManyStreamsError(f"Max inbound streams is {most}")
            headers = _decode_headers(self.decoder, block)
            if stream is None:
                stream = self._begin_new_stream(stream_id, AllowedStreamIDs.ODD)
            if config.validate_inbound_headers or config.normalize_inbound_headers or not _plain(stream, headers):
                return stream.receive_headers(headers, last, config.header_encoding)[1]
            machine = stream.state_machine
            events: list[Any] = machine.process_input(StreamInputs.RECV_HEADERS)
            if last:
                events += machine.process_input(StreamInputs.RECV_END_STREAM)
                events[0].stream_ended = events[1]
            elif machine.trailers_received:
                raise ProtocolError("Trailers must have END_STREAM set")
        except ProtocolError as exc:
            self._terminate_connection(exc.error_code)
            raise
        stream._expected_content_length = None
        encoding: Any = config.header_encoding
        events[0].headers = [(n.decode(encoding), v.decode(encoding)) for n, v in headers] if encoding else headers
        return events


def _plain(stream: H2Stream, headers: Iterable[Any]) -> bool:
    """Return whether h2 checks nothing in these headers: they contain no length, and are not an interim answer's."""
    return stream.request_method != b"HEAD" and not any(
        name == b"content-length" or (name == b":status" and value.startswith(b"1")) for name, value in headers
    )
