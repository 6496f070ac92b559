"""The short way for the common frames puts the same bytes on the wire, takes the same data, and keeps the same windows as h2's own."""

from __future__ import annotations

from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, ResponseReceived, StreamEnded, TrailersReceived
from h2.exceptions import FlowControlError, NoSuchStreamError, ProtocolError, TooManyStreamsError
from h2.settings import SettingCodes
from hpack import Decoder
from hpack.exceptions import HPACKDecodingError, OversizedHeaderListError
from hypothesis import given, settings
from hypothesis import strategies as st

from snakepit_trio.wire.http2.lean_h2 import LeanH2Connection
from snakepit_trio.wire.http2.lean_hpack import FixedHeaders, RememberingDecoder, literal
from snakepit_trio.wire.http2.pipe import Turn

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
    events: list[Event] = []
    if isinstance(connection, LeanH2Connection):
        data = connection.take_data(
            data, lambda stream_id: lambda part, size: taken.append(part), events.append, Turn(1 << 30)
        )
        for part in taken[before:]:
            connection.acknowledge_received_data(len(part), 1)
    ended = False
    for event in [*events, *connection.receive_data(data)]:
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
        if parts and parts[0][0]:
            server.send_data(1, parts[0][0][:10], end_stream=True)
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
        lean.take_data(frame * 4, lambda stream_id: lambda part, size: None, pytest.fail, Turn(99))


def test_data_for_nobody_is_left_to_h2() -> None:
    client, lean = pair(LeanH2Connection)
    assert isinstance(lean, LeanH2Connection)
    client.send_data(1, b"data")
    frame = client.data_to_send()
    assert lean.take_data(frame, lambda stream_id: None, pytest.fail, Turn(99)) == frame
    unknown = frame[:8] + b"\x09" + frame[9:]
    assert lean.take_data(unknown, lambda stream_id: pytest.fail("asked"), pytest.fail, Turn(99)) == unknown


def test_the_rest_of_a_frame_whose_stream_is_gone_costs_the_connection_nothing() -> None:
    client, lean = pair(LeanH2Connection)
    assert isinstance(lean, LeanH2Connection)
    taken: list[bytes] = []
    for _ in range(20):
        # More than a window in all: what is dropped must be given back, or the client could not go on.
        client.send_data(1, bytes(8000))
        frame = client.data_to_send()
        assert (
            lean.take_data(frame[:4000], lambda stream_id: lambda part, size: taken.append(part), pytest.fail, Turn(99))
            == b""
        )
        lean.acknowledge_received_data(len(taken.pop()), 1)
        assert lean.take_data(frame[4000:] + frame[:3], lambda stream_id: None, pytest.fail, Turn(99)) == frame[:3]
        client.receive_data(lean.data_to_send())


TEXT = st.text("abcXYZ09-/", min_size=1, max_size=12)
NAMES = st.sampled_from(["x-one", "x-two", "user-agent", "grpc-timeout", "authorization"])


def seen(connection: H2Connection, data: bytes) -> list[object]:
    """All that one side is told of what arrives, in order."""
    events: list[Event] = []
    if isinstance(connection, LeanH2Connection):
        data = connection.take_data(
            data,
            lambda stream_id: lambda part, size: events.append(DataReceived(stream_id=stream_id, data=part)),
            events.append,
            Turn(1 << 30),
        )
    events += connection.receive_data(data)
    found: list[object] = []
    for event in events:
        if isinstance(event, RequestReceived | ResponseReceived | TrailersReceived):
            found.append((type(event), event.stream_id, [tuple(item) for item in event.headers]))
        elif isinstance(event, DataReceived):
            found.append((event.stream_id, event.data))
        elif isinstance(event, StreamEnded):
            found.append(event.stream_id)
    return found


def joined(story: list[object]) -> list[object]:
    """The same with data in one piece that was told in several: a frame is taken as far as it has arrived."""
    found: list[Any] = []
    for item in story:
        data = isinstance(item, tuple) and isinstance(item[1], bytes)
        if not data:
            found.append(item)
        elif found and isinstance(found[-1], tuple) and found[-1][0] == item[0]:  # type: ignore[index]
            found[-1] = item[0], found[-1][1] + item[1]  # type: ignore[index]
        else:
            found.append(item)
    return found


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(NAMES, TEXT), max_size=4),
            st.sampled_from(["none", "data", "last"]),
            st.sampled_from(["plain", "interim", "length", "wrong length"]),
        ),
        min_size=1, max_size=6,
    ),
    st.lists(st.integers(1, 200), max_size=5),
    st.integers(0, 300),
    st.booleans(),
)  # fmt: skip
def test_requests_and_answers_are_told_as_by_h2(
    calls: list[tuple[list[tuple[str, str]], str, str]], cuts: list[int], table: int, checks: bool
) -> None:
    """Unary RPCs one after another, whatever their headers, however they are cut up, by a client that is h2's own."""
    stories = []
    looks: dict[str, Any] = {"validate_inbound_headers": checks, "normalize_inbound_headers": checks}
    for kind in (LeanH2Connection, H2Connection):
        client = H2Connection(H2Configuration(client_side=True))
        server = kind(H2Configuration(client_side=False, header_encoding=None, **looks))
        client_too = kind(H2Configuration(client_side=True, header_encoding="ascii", **looks))
        answering = H2Connection(H2Configuration(client_side=False))
        opened(client, server)
        opened(client_too, answering)
        story: list[object] = []
        for number, (headers, body, answer) in enumerate(calls):
            stream = 3 + 2 * number
            if number == 2:
                # The tables become smaller, or are of no use any more.
                client.encoder.header_table_size = answering.encoder.header_table_size = table
            client.send_headers(stream, HEADERS + headers, end_stream=body == "none")
            if body == "data":
                client.send_data(stream, b"message")
            client_too.send_headers(stream, HEADERS, end_stream=True)
            answering.receive_data(client_too.data_to_send())
            if answer == "interim":
                answering.send_headers(stream, [(":status", "103"), *headers])
            length = {"length": [("content-length", "6")], "wrong length": [("content-length", "5")]}.get(answer, [])
            answering.send_headers(stream, [(":status", "200"), *headers, *length])
            answering.send_data(stream, b"answer")
            answering.send_headers(stream, [("grpc-status", "0"), *headers], end_stream=True)
            if body == "last":
                client.send_data(stream, b"message", end_stream=True)
            rest = client.data_to_send()
            for cut in [*cuts, len(rest)]:
                story += seen(server, rest[:cut])
                rest = rest[cut:]
            try:
                story += seen(client_too, answering.data_to_send())
            except ProtocolError as exc:
                story.append(type(exc))
                break
            story.append(sorted(item for item in server.streams if not server.streams[item].closed))
        stories.append(story)
    assert joined(stories[0]) == joined(stories[1])


def test_what_is_remembered_of_headers_is_not_trusted_too_far() -> None:
    decoder = RememberingDecoder(1000)
    fixed = FixedHeaders((":method", "POST"), ("x", "y" * 200), ("authorization", "Bearer " + "t" * 200))
    timed = [fixed.and_one("grpc-timeout", f"{n}m") for n in range(3)]
    for headers in [fixed, *timed, fixed, timed[0]]:
        assert [(n.decode(), v.decode()) for n, v in decoder.decode(headers.block, raw=True)] == list(headers)
    assert not decoder.header_table.dynamic_entries
    # More than a list may have, though each part of it is within the limit.
    with pytest.raises(OversizedHeaderListError):
        decoder.decode(timed[0].block + literal("x", "z" * 600), raw=True)
    # A change of the table's size in the middle of a block, and a block that is cut off.
    with pytest.raises(HPACKDecodingError):
        decoder.decode(fixed.block + b"\x20", raw=True)
    with pytest.raises(HPACKDecodingError):
        decoder.decode(fixed.block + b"\0\x04abc", raw=True)
    # Kinds of messages by turns, more of them than are remembered; each list is its taker's own.
    turns = [FixedHeaders(("x", str(n))) for n in range(7)]
    for headers in [*turns[:2] * 3, *turns * 2]:
        found = decoder.decode(headers.block, raw=True)
        assert [(n.decode(), v.decode()) for n, v in found] == list(headers)
        assert isinstance(found, list)
        found.clear()
    # The same bytes mean something else when the table has changed.
    entry = b"\x40\x01a\x01%c"
    assert decoder.decode(entry % b"1" + fixed.block + b"\xbe", raw=True)[-1] == (b"a", b"1")
    assert decoder.decode(b"\xbe", raw=True) == decoder.decode(b"\xbe", raw=True) == [(b"a", b"1")]
    decoder.decode(entry % b"2", raw=True)
    assert decoder.decode(b"\xbe", raw=True) == [(b"a", b"2")]


def test_only_what_differs_between_requests_is_decoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Decoder.decode
    decoded: list[int] = []

    def counting(self: Decoder, data: bytes, raw: bool = False) -> Any:
        decoded.append(len(data))
        return whole(self, data, raw)

    monkeypatch.setattr(Decoder, "decode", counting)
    decoder = RememberingDecoder(10_000)
    fixed = FixedHeaders((":method", "POST"), ("x", "y" * 200))
    timed = [fixed.and_one("grpc-timeout", f"{n}m") for n in range(3)]
    tail = len(literal("grpc-timeout", "1m"))
    for headers in timed:
        decoder.decode(headers.block, raw=True)
    assert decoded == [len(timed[0].block), tail, tail]
    # What ends with anything else is remembered as a whole.
    decoded.clear()
    other = FixedHeaders((":status", "200"), ("y", "1"))
    for _ in range(3):
        assert len(list(decoder.decode(other.block, raw=True))) == 2
    assert decoded == [len(other.block)]


@pytest.mark.parametrize("room", [0, -1])
def test_the_limit_of_a_header_list_counts_32_bytes_for_each(room: int) -> None:
    """RFC 9113, 6.5.2; also for one that is put together from what is remembered and what is new."""
    fixed = FixedHeaders((":method", "POST"), ("x", "y" * 50))
    timed = fixed.and_one("grpc-timeout", "1m")
    size = sum(len(name) + len(value) + 32 for name, value in timed)
    decoder = RememberingDecoder(size + room)
    decoder.decode(fixed.block, raw=True)
    decoder._before = fixed.block
    if room < 0:
        with pytest.raises(OversizedHeaderListError):
            decoder.decode(timed.block, raw=True)
    else:
        assert len(list(decoder.decode(timed.block, raw=True))) == 3


def test_a_client_that_opens_streams_the_short_way_is_understood_and_keeps_to_the_limit() -> None:
    client = LeanH2Connection(H2Configuration(client_side=True))
    server = H2Connection(H2Configuration(client_side=False))
    opened(client, server)
    server.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 3})
    client.receive_data(server.data_to_send())
    fixed = FixedHeaders(*HEADERS, ("authorization", "Bearer " + "x" * 300))
    assert client.open_stream(fixed) == 3
    client.send_data(3, b"whole", end_stream=True)
    _, *events = server.receive_data(client.data_to_send())
    assert [type(event) for event in events] == [RequestReceived, DataReceived, StreamEnded]
    assert isinstance(events[0], RequestReceived)
    assert [tuple(map(bytes.decode, item)) for item in events[0].headers] == list(fixed)
    assert client.open_stream(fixed) == 5
    with pytest.raises(TooManyStreamsError):
        client.open_stream(fixed)
    server.send_headers(3, [(":status", "200")], end_stream=True)
    client.receive_data(server.data_to_send())
    assert client.open_stream(fixed) == 7
