"""The limits of a bridge's connection fit each other."""

from __future__ import annotations

from snakepit_trio.wire.http2 import server_engine as engine


def test_a_frame_fits_into_a_stream_and_streams_into_the_connection() -> None:
    # RFC 9113, 4.2: no smaller, and no larger, than a peer may be told.
    assert 1 << 14 <= engine.ServerProtocol.max_frame < 1 << 24
    # A larger one could not be sent at once, and would be kept until all of it is here.
    assert engine.ServerProtocol.max_frame <= engine._STREAM_WINDOW // 2
    assert 2 * engine._STREAM_WINDOW <= engine._WINDOW
