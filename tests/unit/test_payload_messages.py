"""Payloads to the library's messages and back."""

from __future__ import annotations

from snakepit_trio.wire.frames import JSON, MSGPACK, NO_PAYLOAD, Payload, SharedBlock
from snakepit_trio.wire.generated.snakepit.v1 import Buffer
from snakepit_trio.wire.generated.snakepit.v1 import Payload as PayloadMessage
from snakepit_trio.wire.payload_messages import message_of, payload_of


def test_a_payload_comes_back_as_it_was() -> None:
    for payload in (Payload(JSON, b"{}"), Payload(MSGPACK, b"\x80", [b"one", b""]), NO_PAYLOAD):
        again = payload_of(PayloadMessage.parse(bytes(message_of(payload))))
        assert (again.encoding, again.data, list(again.buffers)) == (
            payload.encoding,
            payload.data,
            list(payload.buffers),
        )
    views = Payload(MSGPACK, memoryview(b"data"), [memoryview(b"one"), bytearray(b"two")])  # type: ignore[arg-type]
    again = payload_of(PayloadMessage.parse(bytes(message_of(views))))
    assert (again.data, list(again.buffers)) == (b"data", [b"one", b"two"])


def test_what_is_not_there() -> None:
    assert payload_of(None) is NO_PAYLOAD
    message = PayloadMessage(data=b"x", buffers=[Buffer(inline=b"a"), Buffer()])
    assert list(payload_of(message).buffers) == [b"a", b""]
    elsewhere = SharedBlock("", 0, 0)
    assert list(payload_of(message, elsewhere).buffers) == [b"a", elsewhere]
