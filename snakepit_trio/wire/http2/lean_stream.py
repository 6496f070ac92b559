"""grpclib's streams without the parts for coroutines: their events call back, or do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from grpclib.protocol import Stream

if TYPE_CHECKING:
    from grpclib.protocol import Connection

__all__ = ["NOTHING", "LeanStream", "Notice", "Stream"]


class _Nothing:
    """Replaces an object of grpclib's for which a coroutine would wait, or from which it would read; no coroutine does."""

    def set(self) -> None:
        pass

    def unacked_size(self) -> int:
        return 0


NOTHING = _Nothing()


class LeanStream(Stream):
    """grpclib's stream for a :class:`~snakepit_trio.wire.http2.pipe.FramePipe`, without the parts for coroutines.

    Args:
        connection: Its connection.
        stream_id: Its number.

    Attributes:
        reset_code: The HTTP/2 error code with which the peer has reset it, or None.
        unprocessed: Whether the peer has said that it has not processed the stream (RFC 9113, 8.7).
    """

    reset_code: int | None = None
    unprocessed = False

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.connection = connection
        self._h2_connection = connection._connection
        self._transport = connection._transport
        self.wrapper: None = None
        self.id: int = stream_id
        self.headers: Any = None
        self.trailers: Any = None
        nothing = cast("Any", NOTHING)
        self.buffer: Any = nothing
        self.window_updated: Any = nothing
        self.headers_received: Any = nothing
        self.trailers_received: Any = nothing


class Notice:
    """Replaces an ``asyncio.Event`` of grpclib's: setting it calls back instead of waking a coroutine."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def set(self) -> None:
        self._callback()

    def clear(self) -> None:
        pass
