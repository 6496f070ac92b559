"""A connection takes what it has received in turns: so many frames and messages, then others go on, then the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import h2.config
import h2.connection
import h2.settings
import pytest

from snakepit_trio.wire.connection import Connection
from snakepit_trio.wire.http2 import engine
from snakepit_trio.wire.http2.client_engine import client_protocol
from snakepit_trio.wire.http2.engine import _SLOW, _TURN, PipeProtocol
from snakepit_trio.wire.http2.lean_h2 import LeanH2Connection
from snakepit_trio.wire.http2.plain_h2 import PlainH2Connection


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    abort = close

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()

    async def serve(self) -> None:
        raise AssertionError


@pytest.fixture(params=["lean", "plain"], autouse=True)
def h2_connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shorter ways for common frames, and by h2 alone, as where they can't be had."""
    assert engine._H2 is LeanH2Connection
    if request.param == "plain":
        monkeypatch.setattr(engine, "_H2", PlainH2Connection)


class Pair:
    """The client's engine, and a server by h2 that answers one RPC."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.protocol = client_protocol(PipeProtocol)
        self.protocol.connection_made(cast("Any", self.wire))
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.server.initiate_connection()
        self.messages: list[bytes] = []
        self.ended: list[int] = []
        connection = Connection(self.protocol, cast("Any", self.wire), token="t", max_message=1 << 20)
        connection.rpc("/s/m", on_message=self.messages.append, on_end=lambda status, words: self.ended.append(status))
        self.server.receive_data(bytes(self.wire.written))
        self.wire.written.clear()
        self.server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
        self.feed(self.server.data_to_send())
        self.finish()
        self.wire.written.clear()

    def feed(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def finish(self) -> None:
        while self.protocol.unfinished:
            self.protocol.proceed()

    def turns(self, data: bytes, seen: Callable[[], int]) -> list[int]:
        """How much was seen in each turn that these bytes take."""
        found = []
        before = seen()
        self.feed(data)
        while True:
            found.append(seen() - before)
            before = seen()
            if not self.protocol.unfinished:
                return found
            self.protocol.proceed()


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def data_frame(body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + b"\0\0" + (1).to_bytes(4, "big") + body


N = 10 * _TURN
PING = b"\0\0\x08\x06\0\0\0\0\0" + b"12345678"


def test_many_messages_in_one_frame() -> None:
    pair = Pair()
    sent = [str(number).encode() for number in range(N)]
    turns = pair.turns(data_frame(b"".join(map(framed, sent))), lambda: len(pair.messages))
    assert pair.messages == sent
    assert max(turns) <= _TURN
    assert len(turns) >= N // _TURN


def test_many_frames_of_one_byte() -> None:
    pair = Pair()
    message = bytes(range(256)) * 4
    whole = framed(message)
    pipe: Any = pair.protocol.processor.streams[1].buffer
    frames = b"".join(data_frame(whole[i : i + 1]) for i in range(len(whole) - 1))
    turns = pair.turns(frames, lambda: sum(map(len, pipe._parts)))
    assert not pair.messages
    assert max(turns) <= _TURN
    pair.feed(data_frame(whole[-1:]))
    assert pair.messages == [message]


def test_frames_that_h2_takes_count_for_more() -> None:
    pair = Pair()
    turns = pair.turns(PING * N, lambda: len(pair.wire.written) // len(PING))
    assert sum(turns) == N
    assert max(turns) <= _TURN // _SLOW


def test_an_end_comes_after_the_messages_before_it() -> None:
    pair = Pair()
    sent = [b"x"] * N
    pair.server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    pair.feed(data_frame(b"".join(map(framed, sent))) + pair.server.data_to_send())
    while pair.protocol.unfinished:
        assert pair.ended == []
        pair.protocol.proceed()
    assert pair.messages == sent
    assert pair.ended == [0]


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_however_the_bytes_are_cut(cut: int) -> None:
    pair = Pair()
    sent = [bytes([number % 256]) * (number % 50) for number in range(300)]
    data = b"".join(data_frame(framed(message)) + PING * (number % 3) for number, message in enumerate(sent))
    for at in range(0, len(data), cut):
        pair.feed(data[at : at + cut])
        pair.finish()
    assert pair.messages == sent
    assert len(pair.wire.written) == len(PING) * 300


def test_what_breaks_the_rules_leaves_nothing_for_later() -> None:
    pair = Pair()
    pair.feed(data_frame(framed(b"x") * N) + b"\xff" * 1000)
    pair.finish()
    assert pair.ended == [14]
    assert len(pair.messages) == N


FRAMES = {
    "an empty DATA frame of no stream": b"\0" * 9,
    "GOAWAY": b"\0\0\x08\x07" + b"\0" * 13,
    "PING": PING,
    "a PING that is too short": b"\0\0\x01\x06\0\0\0\0\0x",
    "a message": data_frame(framed(b"x")),
    "many messages": data_frame(framed(b"x") * 2 * _TURN),
    "half a message": data_frame(framed(b"x")[:3]),
    "headers that are none": b"\0\0\x04\x01\x04\0\0\0\x01\xff\xff\xff\xff",
    "a window of none": b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0",
    "SETTINGS out of range": b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\0\0",
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("first", FRAMES)
def test_whatever_has_arrived_is_done_with_in_the_end(first: str) -> None:
    for after in FRAMES.values():
        for last in (FRAMES["a message"], FRAMES["half a message"]):
            pair = Pair()
            pair.feed(FRAMES[first] + after)
            pair.feed(last + PING * _TURN)
            for _ in range(2 * _TURN):
                if not pair.protocol.unfinished:
                    break
                pair.protocol.proceed()
            else:
                raise AssertionError(f"{after!r}, {last!r} would be looked at for ever")
