"""h2's connection, for which a plain DATA frame costs no objects.

h2 builds a frame, its flags, events and their texts for each DATA frame, which costs several times what a small message
costs otherwise. Nearly all frames of an Exchange stream are alike: DATA, no flags, on a stream that is open in both
directions. Those are read and written here directly; whatever else comes, or may be wrong, goes to h2 itself. The windows
of flow control are h2's own, so that both ways may follow each other at any time.

The frame: https://www.rfc-editor.org/rfc/rfc9113#section-6.1
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from h2.connection import ConnectionInputs, ConnectionState, H2Connection
from h2.stream import StreamInputs, StreamState

__all__ = ["FixedHeaders", "LeanH2Connection"]

_OPEN = (ConnectionState.CLIENT_OPEN, ConnectionState.SERVER_OPEN)
_MAY_RECEIVE = (StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL)
_MAY_SEND = (StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE)
_HEAD = struct.Struct(">HBHI")
_HEAD_SIZE = _HEAD.size


#: HEADERS, END_HEADERS; and with END_STREAM.
_WHOLE_HEADERS, _LAST_HEADERS = 0x0104, 0x0105
_STATUS_200 = b"\x88"


class FixedHeaders(tuple[tuple[str, str], ...]):  # noqa: SLOT001 - a tuple can have none
    """Headers of a response that are always the same: encoded once, as literals that change no table of HPACK's.

    Args:
        headers: At most ``:status`` 200 and names and values of less than 127 bytes, all in ASCII and in lower case.

    The encoding: https://www.rfc-editor.org/rfc/rfc7541#section-6.2.2
    """

    block: bytes

    def __new__(cls, *headers: tuple[str, str]) -> FixedHeaders:
        made = super().__new__(cls, headers)
        parts = []
        for name, value in headers:
            if name == ":status":
                assert value == "200"
                parts.append(_STATUS_200)
                continue
            assert len(name) < 127 and len(value) < 127
            parts += (b"\0", bytes((len(name),)), name.encode("ascii"), bytes((len(value),)), value.encode("ascii"))
        made.block = b"".join(parts)
        return made


class LeanH2Connection(H2Connection):
    """h2's connection, with a shorter way for most DATA frames and for headers that never change."""

    #: The stream whose DATA frame is arriving, and how many bytes of it are to come.
    _stream_inside = 0
    _left_inside = 0

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
        ):
            super().send_headers(stream_id, headers, end_stream, **priority)
            return
        self.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        stream.state_machine.process_input(StreamInputs.SEND_HEADERS)
        if end_stream:
            stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
        block = headers.block
        size = len(block)
        self._data_to_send += _HEAD.pack(
            size >> 8, size & 255, _LAST_HEADERS if end_stream else _WHOLE_HEADERS, stream_id
        )
        self._data_to_send += block

    def send_data(
        self, stream_id: int, data: bytes | memoryview, end_stream: bool = False, pad_length: int | None = None
    ) -> None:
        """As h2's own."""
        size = len(data)
        stream = self.streams.get(stream_id)
        if (
            end_stream
            or pad_length is not None
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
        self._data_to_send += _HEAD.pack(size >> 8, size & 255, 0, stream_id)
        self._data_to_send += data

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        """As h2's own."""
        stream = self.streams.get(stream_id)
        if stream is not None and acknowledged_size > 0:
            windows = self._inbound_flow_control_window_manager, stream._inbound_window_manager
            if all(
                window.current_window_size > 0
                and window._bytes_processed + acknowledged_size < window.max_window_size // 2
                for window in windows
            ):
                # The peer has room enough, and is not told of more yet.
                for window in windows:
                    window._bytes_processed += acknowledged_size
                return
        super().acknowledge_received_data(acknowledged_size, stream_id)

    def take_data(self, data: bytes, taker: Callable[[int], Callable[[bytes, int], None] | None]) -> bytes:
        """Take the plain DATA frames with which this begins; returns the rest, which is for :meth:`receive_data`.

        A frame that has not arrived in full is taken as far as it has, so that large ones are never put together.

        Args:
            data: What has arrived.
            taker: Gives for a stream's number what takes its data, with the number of its bytes; None to leave it to h2.

        Raises:
            FlowControlError: The peer has sent more than it may.
        """
        buffer = self.incoming_buffer
        if buffer._data or buffer._preamble_len or buffer._headers_buffer:
            return data
        position, end = 0, len(data)
        if self._left_inside:
            position = min(self._left_inside, end)
            self._left_inside -= position
            self._take_part(data[:position], taker(self._stream_inside))
        while end - position >= _HEAD_SIZE and self.state_machine.state in _OPEN:
            high, low, kind_and_flags, stream_id = _HEAD.unpack_from(data, position)
            size = high << 8 | low
            stop = position + _HEAD_SIZE + size
            stream = self.streams.get(stream_id)
            if (
                kind_and_flags
                or size > self.max_inbound_frame_size
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
            if stop > end:
                self._stream_inside, self._left_inside = stream_id, stop - end
                stop = end
            part = data[position + _HEAD_SIZE : stop]
            position = stop
            take(part, len(part))
        return data[position:] if position else data

    def _take_part(self, part: bytes, take: Callable[[bytes, int], None] | None) -> None:
        if take is not None:
            take(part, len(part))
        elif self.state_machine.state in _OPEN:
            # Its stream has been reset meanwhile; the connection's window is still to be given back.
            self.acknowledge_received_data(len(part), self._stream_inside)
