"""The short way for DATA frames puts the same bytes on the wire, takes the same data, and keeps the same windows as h2's own."""

from __future__ import annotations

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from h2.exceptions import FlowControlError, NoSuchStreamError, ProtocolError
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.wire.lean_h2 import LeanH2Connection

#: Four of the longest fill the window, so that updates of it come into play.
PARTS = st.integers(10_000, 16_000).map(bytes)
HEADERS = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "localhost")]


def opened(client: H2Connection, server: H2Connection) -> None:
    """Both sides after the preface, with stream 1 open."""
    client.initiate_connection()
    server.initiate_connection()
    client.send_headers(1, HEADERS)
    for _ in range(2):
        server.receive_data(client.data_to_send())
        client.receive_data(server.data_to_send())


def pair(kind: type[H2Connection]) -> tuple[H2Connection, H2Connection]:
    client = H2Connection(H2Configuration(client_side=True))
    server = kind(H2Configuration(client_side=False))
    opened(client, server)
    return client, server


def windows(connection: H2Connection) -> tuple[int, ...]:
    stream = connection.streams[1]
    return (
        connection.outbound_flow_control_window,
        stream.outbound_flow_control_window,
        connection._inbound_flow_control_window_manager.current_window_size,
        stream._inbound_window_manager.current_window_size,
        connection._inbound_flow_control_window_manager._bytes_processed,
        stream._inbound_window_manager._bytes_processed,
    )


def receive(connection: H2Connection, data: bytes, taken: list[bytes]) -> bool:
    """What the protocol does with what arrives; returns whether the stream has ended."""
    before = len(taken)
    if isinstance(connection, LeanH2Connection):
        data = connection.take_data(data, lambda stream_id: lambda part, size: taken.append(part))
        for part in taken[before:]:
            connection.acknowledge_received_data(len(part), 1)
    ended = False
    for event in connection.receive_data(data):
        if isinstance(event, DataReceived):
            taken.append(event.data)
            if event.flow_controlled_length:
                connection.acknowledge_received_data(event.flow_controlled_length, 1)
        ended = ended or isinstance(event, StreamEnded)
    return ended


@given(
    st.lists(st.tuples(st.binary(max_size=300) | PARTS, st.none() | st.integers(0, 20)), max_size=4),
    st.booleans(),
    st.data(),
)
def test_the_same_data_and_the_same_windows(
    parts: list[tuple[bytes, int | None]], end: bool, data: st.DataObject
) -> None:
    client, lean = pair(LeanH2Connection)
    twin_client, plain = pair(H2Connection)
    for sender in (client, twin_client):
        for part, padding in parts:
            sender.send_data(1, part, pad_length=padding)
            if part[:1] > b"\x80":
                sender.ping(b"12345678")
        if end:
            sender.end_stream(1)
    rest = client.data_to_send()
    assert rest == twin_client.data_to_send()
    taken: list[bytes] = []
    expected: list[bytes] = []
    for size in [*data.draw(st.lists(st.integers(1, 20_000), max_size=8)), len(rest)]:
        assert receive(lean, rest[:size], taken) == receive(plain, rest[:size], expected)
        rest = rest[size:]
    assert lean.data_to_send() == plain.data_to_send()
    assert b"".join(taken) == b"".join(expected) == b"".join(part for part, _ in parts)
    assert windows(lean) == windows(plain)
    for server in (lean, plain):
        server.send_headers(1, [(":status", "200")])
        for part, _ in parts:
            server.send_data(1, part)
    assert lean.data_to_send() == plain.data_to_send()
    assert windows(lean) == windows(plain)


def test_what_may_not_be_sent_is_refused_as_by_h2() -> None:
    client, lean = pair(LeanH2Connection)
    lean.send_headers(1, [(":status", "200")])
    with pytest.raises(FlowControlError):
        lean.send_data(1, bytes(65536))
    lean.send_data(1, b"last", end_stream=True)
    with pytest.raises(ProtocolError):
        lean.send_data(1, b"more")
    with pytest.raises(NoSuchStreamError):
        lean.send_data(3, b"never opened")


def test_more_than_the_window_allows_is_refused() -> None:
    _, lean = pair(LeanH2Connection)
    frame = (16384).to_bytes(3, "big") + b"\0\0\0\0\0\1" + bytes(16384)
    assert isinstance(lean, LeanH2Connection)
    with pytest.raises(FlowControlError):
        lean.take_data(frame * 4, lambda stream_id: lambda part, size: None)


def test_data_for_nobody_is_left_to_h2() -> None:
    client, lean = pair(LeanH2Connection)
    assert isinstance(lean, LeanH2Connection)
    client.send_data(1, b"data")
    frame = client.data_to_send()
    assert lean.take_data(frame, lambda stream_id: None) == frame
    unknown = frame[:8] + b"\x09" + frame[9:]
    assert lean.take_data(unknown, lambda stream_id: pytest.fail("asked")) == unknown


def test_the_rest_of_a_frame_whose_stream_is_gone_costs_the_connection_nothing() -> None:
    client, lean = pair(LeanH2Connection)
    assert isinstance(lean, LeanH2Connection)
    taken: list[bytes] = []
    for _ in range(20):
        # More than a window in all: what is dropped must be given back, or the client could not go on.
        client.send_data(1, bytes(8000))
        frame = client.data_to_send()
        assert lean.take_data(frame[:4000], lambda stream_id: lambda part, size: taken.append(part)) == b""
        lean.acknowledge_received_data(len(taken.pop()), 1)
        assert lean.take_data(frame[4000:] + frame[:3], lambda stream_id: None) == frame[:3]
        client.receive_data(lean.data_to_send())
