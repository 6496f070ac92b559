"""Parts of the wire below the messages: fields of protobuf, headers that are always the same, the engine of a client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import grpclib
import pytest
from hpack import Decoder

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.errors import GRPC_STATUS
from snakepit_trio.wire.codec import codec
from snakepit_trio.wire.codec.wrapping import Wrapper
from snakepit_trio.wire.failures import status_of
from snakepit_trio.wire.fields import MOST_FIELDS, read_fields, read_varint
from snakepit_trio.wire.frames import ErrorInfo, FrameError
from snakepit_trio.wire.http2 import client_engine
from snakepit_trio.wire.http2.client_engine import client_protocol
from snakepit_trio.wire.http2.lean_hpack import FixedHeaders, literal
from snakepit_trio.wire.http2.lean_stream import NOTHING


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# ---- fields --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 15, 16, 2047, 2048, (1 << 29) - 1])
@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_fields_of_any_number(number: int, value: int) -> None:
    data = varint(number << 3) + varint(value) + varint(number << 3 | 2) + b"\3abc"
    assert read_fields(data, 0, len(data)) == [(number << 3, value), (number << 3 | 2, b"abc")]
    assert read_fields(b"xx" + data + b"yy", 2, 2 + len(data)) == [(number << 3, value), (number << 3 | 2, b"abc")]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 20_000])
def test_fields_of_any_length(size: int) -> None:
    data = b"\x0a" + varint(size) + bytes(size) + b"\x10\5"
    assert read_fields(data, 0, len(data)) == [(10, bytes(size)), (16, 5)]
    # Of a view, a copy; from so many bytes on, a view.
    ((_, copy), _) = read_fields(cast("Any", memoryview(data)), 0, len(data))
    assert type(copy) is bytes and copy == bytes(size)
    for large, kind in ((size + 1, bytes), (size, memoryview)):
        ((_, value), _) = read_fields(data, 0, len(data), large)
        assert type(value) is kind and value == bytes(size)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x09" + bytes(8) + b"\x08\1", [(8, 1)]),
        (b"\x0d" + bytes(4) + b"\x08\1", [(8, 1)]),
        (b"\x09" + bytes(8), []),
        (b"\x0d" + bytes(4), []),
        (b"\x09" + bytes(7), "cut off"),
        (b"\x0d" + bytes(3), "cut off"),
        (b"\x08", "cut off"),
        (b"\x0a", "cut off"),
        (b"\x88", "varint"),
        (b"\x08\x80", "varint"),
        (b"\x0a\2a", "longer than its message"),
        (b"\x0a\2ab", [(10, b"ab")]),
        (b"\x05" + bytes(4), "field number 0"),
        (b"\x01" + bytes(8), "field number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x0c", "wire type 4"),
        (b"\x0e", "wire type 6"),
        (b"\x7f", "wire type 7"),
        (b"", []),
    ],
)
def test_what_is_skipped_and_what_is_refused(data: bytes, found: Any) -> None:
    if isinstance(found, str):
        with pytest.raises(FrameError, match=found):
            read_fields(data, 0, len(data))
    else:
        assert read_fields(data, 0, len(data)) == found


def test_how_many_fields_there_may_be() -> None:
    data = b"\x08\1" * MOST_FIELDS
    assert len(read_fields(data, 0, len(data))) == MOST_FIELDS
    data += b"\x08\1"
    with pytest.raises(FrameError, match=f"more than {MOST_FIELDS} fields"):
        read_fields(data, 0, len(data))


def test_the_longest_number() -> None:
    # Ten bytes have room for seventy bits; those above 64 are dropped, as protobuf has it.
    assert read_varint(b"\xff" * 9 + b"\x7f", 0, 10) == ((1 << 64) - 1, 10)
    assert read_varint(b"\x80" * 9 + b"\x01", 0, 10) == (1 << 63, 10)
    with pytest.raises(FrameError, match="too long"):
        read_varint(b"\x80" * 10 + b"\x01", 0, 11)
    for end in range(3):
        with pytest.raises(FrameError, match="cut off"):
            read_varint(b"\x80\x80\x80\1", 0, end)


# ---- headers -------------------------------------------------------------------------------------------


def test_headers_that_the_static_table_has_are_one_byte_each() -> None:
    known = ((":status", "200"), (":method", "POST"), (":scheme", "http"), (":scheme", "https"))
    assert FixedHeaders(*known).block == b"\x88\x83\x86\x87"
    others = (("a", "b"), ("authorization", "Bearer x"), (":status", "404"))
    made = FixedHeaders(known[0], *others)
    assert made == (known[0], *others)
    assert made.block == b"\x88" + b"".join(literal(*item) for item in others)
    decoder = Decoder()
    assert [tuple(item) for item in decoder.decode(made.block)] == list(made)
    assert len(decoder.header_table.dynamic_entries) == 0
    more = made.and_one("grpc-timeout", "5S")
    assert more == (*made, ("grpc-timeout", "5S")) and type(more) is FixedHeaders
    assert [tuple(item) for item in decoder.decode(more.block)] == list(more)


def test_only_what_is_secret_is_never_to_be_put_into_a_table() -> None:
    assert literal("authorization", "x")[:1] == b"\x10" and literal("other", "x")[:1] == b"\0"


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 127 + 16383, 127 + 16384])
def test_headers_of_any_length(size: int) -> None:
    decoder = Decoder(max_header_list_size=1 << 20)
    assert [tuple(item) for item in decoder.decode(literal("n" * max(1, size), "v" * size))] == [
        ("n" * max(1, size), "v" * size)
    ]


# ---- the engine of a client ----------------------------------------------------------------------------


class Engine:
    """Keeps what it is made of."""

    def __init__(self, handler: Any, config: Any, h2: Any) -> None:
        self.handler, self.config, self.h2 = handler, config, h2
        self.errors = "its own"


def test_the_engine_of_a_client() -> None:
    made = client_protocol(cast("Any", Engine))
    assert made.errors == "its own"
    windows = made.config.http2_connection_window_size, made.config.http2_stream_window_size
    assert windows == (16 << 20, 16 << 20)
    h2 = made.h2
    assert h2.client_side and h2.header_encoding == "ascii"
    # What is sent is made here, and what is read is checked where it is used.
    assert not any(
        (h2.validate_inbound_headers, h2.validate_outbound_headers, h2.normalize_inbound_headers,
         h2.normalize_outbound_headers)
    )  # fmt: skip
    errors = InternalErrors()
    made = client_protocol(cast("Any", Engine), errors=errors, window=70_000, stream_window=80_000)
    assert made.errors is errors
    assert (made.config.http2_connection_window_size, made.config.http2_stream_window_size) == (70_000, 80_000)
    with pytest.raises(NotImplementedError):
        made.handler.accept(SimpleNamespace(), [], lambda: None)
    assert client_engine._WINDOW == 16 << 20


# ---- values that most calls have -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "short"),
    [
        ({}, True), ({"a": 1, "b": "x", "c": None, "d": 1.5, "e": True}, True), (1, True), ("x", True), (None, True),
        ({"a": bytes(9)}, True), ({"a": bytes(9), "b": 1}, True), (bytes(9), True), ({"a": bytes(10)}, False),
        ({"b": 1, "a": bytes(10)}, False), (bytes(10), False), ({1: 1}, False), ({"a": 1, 1: 1}, False), ({"a": []}, False),
        ({"a": {}}, False), ([1], False), ((1,), False), ({"a": 1 << 64}, False), ({"a": "\ud800"}, False),
    ],
)  # fmt: skip
def test_the_short_way_is_for_plain_and_small_values(value: Any, short: bool) -> None:
    found = codec._quick(value, 1000, 10)
    assert (found is not None) is short
    if found is not None:
        long = codec._encode(value, "params", 1000, codec.MSGPACK, Wrapper(threshold=10))
        assert (found.data, found.encoding) == (long.data, long.encoding) and not found.buffers and not long.buffers
        assert codec.decode(found) == value
        size = len(found.data)
        assert codec._quick(value, size, 10) == found and codec._quick(value, size - 1, 10) is None


# ---- failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(GRPC_STATUS))
def test_a_status_that_invites_to_send_again_is_never_a_tools(code: str) -> None:
    """What a tool raised keeps the statuses that speak of what was asked for; all others would say what became of the RPC."""
    number = GRPC_STATUS[code]
    about_the_request = number in {grpclib.Status[name].value for name in (
        "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED",
    )}  # fmt: skip
    assert status_of(ErrorInfo(code)) == number
    expected = number if about_the_request else grpclib.Status.UNKNOWN.value
    assert status_of(ErrorInfo(code, remote_types=["x.Y"])) == expected


def test_what_nobody_reads_has_nothing_unread() -> None:
    NOTHING.set()
    assert NOTHING.unacked_size() == 0  # Else the other side would get room for bytes that it never sent.
