"""h2's connection without a direct path, for releases of h2 or hpack that lack the private names of :mod:`.lean_h2`.

It has the same interface, and takes several times as long for a small message.
"""

from __future__ import annotations

from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event

from .lean_hpack import FixedHeaders
from .pipe import Turn

__all__ = ["PlainH2Connection"]

_PREAMBLE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_HEAD_SIZE = 9
_HEADERS, _CONTINUATION, _END_HEADERS = 1, 9, 4


class PlainH2Connection(H2Connection):
    """h2's connection, which receives one frame at a time."""

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        # The missing bytes of the client's preamble, or of a frame; and the received part of a frame's head.
        self._to_come = 0 if config.client_side else _PREAMBLE
        self._head = b""
        self._size = 0
        # The bytes of an incomplete block of headers.
        self._headers_kept = 0

    def open_stream(self, headers: FixedHeaders) -> int:
        """Open a stream with a request's headers, and return its number.

        Raises:
            ProtocolError: As from h2's ``send_headers``.
        """
        stream_id = self.get_next_available_stream_id()
        self.send_headers(stream_id, headers)
        return stream_id

    def take_data(
        self,
        data: bytes,
        taker: Callable[[int], Callable[[bytes, int], None] | None],
        process: Callable[[Event], object],
        turn: Turn,
    ) -> bytes:
        """Handle nothing: all data is for :meth:`receive_data`."""
        return data

    def next_frame(self, data: bytes) -> int:
        """Return the number of these bytes that belong to the frame that is arriving; :meth:`receive_data` gets them next."""
        if self._to_come:
            size = min(self._to_come, len(data))
            self._to_come -= size
            return size
        missing = _HEAD_SIZE - len(self._head)
        self._head += data[:missing]
        if len(self._head) < _HEAD_SIZE:
            return len(data)
        head, self._head = self._head, b""
        size = int.from_bytes(head[:3], "big")
        if head[3] in (_HEADERS, _CONTINUATION):
            self._headers_kept = 0 if head[4] & _END_HEADERS else self._headers_kept + size
        taken = min(missing + size, len(data))
        self._to_come = missing + size - taken
        self._size = size
        return taken

    @property
    def arriving(self) -> int:
        """The size of the incomplete frame that is arriving, from its head."""
        return self._size if self._to_come else 0

    @property
    def unfinished_headers(self) -> int:
        """The size of an incomplete block of headers, including the rest of its last frame."""
        return self._headers_kept
