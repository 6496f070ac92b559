"""Payloads of the bridge's messages, and what JSON makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from snakepit_trio.bridge.payloads import check_encoding, encode, in_encoding, params_of, read, write
from snakepit_trio.errors import InvalidParameter, InvalidPayload
from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import JSON, MSGPACK, Payload, SharedBlock
from snakepit_trio.wire.generated.snakepit.v1 import Buffer

LIMIT = 1 << 20


def test_arguments_are_a_map_of_names() -> None:
    assert params_of(None, limit=LIMIT) == params_of(Payload(0, b""), limit=LIMIT) == {}
    assert params_of(codec.encode({"a": 1, "": None}), limit=LIMIT) == {"a": 1, "": None}
    for value in (["a"], "a", [], (), {"a"}, None, 1, {1: 2}, {"a": 1, None: 2}, {b"a": 1}):
        with pytest.raises(InvalidParameter, match="map of argument names"):
            params_of(codec.encode(value), limit=LIMIT)
    for payload in (Payload(MSGPACK, b""), Payload(0, b"x"), Payload(9, b"{}"), Payload(JSON, b"{")):
        with pytest.raises(InvalidPayload) as raised:
            params_of(payload, limit=LIMIT)
        assert raised.value.details["path"] == "payload"


def test_shared_memory_is_not_for_clients() -> None:
    payload = Payload(MSGPACK, codec.encode({}).data, [b"x", SharedBlock("i", 0, 4)])
    with pytest.raises(InvalidPayload, match="no inline bytes") as raised:
        params_of(payload, limit=LIMIT)
    assert raised.value.details["path"] == "payload.buffers[1]"


def test_the_encoding_of_an_answer() -> None:
    asked = Payload(MSGPACK, b"")
    assert [check_encoding(0, None), check_encoding(0, asked), check_encoding(JSON, asked)] == [JSON, MSGPACK, JSON]
    for accept in (3, 99, -1):
        with pytest.raises(InvalidParameter, match="not known"):
            check_encoding(accept, asked)


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
def test_a_value_there_and_back(encoding: int) -> None:
    value: Any = {"a": (1, [2, {"b": (3,)}])}
    as_lists = {"a": [1, [2, {"b": [3]}]]}
    message = write(value, encoding, what="value", limit=LIMIT)
    assert read(message, what="value", limit=LIMIT) == (as_lists if encoding == JSON else value)
    with pytest.raises(InvalidPayload, match="value is missing"):
        read(None, what="value", limit=LIMIT)
    message.buffers.append(Buffer())
    with pytest.raises(InvalidPayload, match="no inline bytes"):
        read(message, what="value", limit=LIMIT)


def test_results_in_the_encoding_that_was_asked_for() -> None:
    packed = codec.encode([1, "a"])
    assert in_encoding(packed, MSGPACK, limit=LIMIT) is packed
    assert in_encoding(packed, JSON, limit=LIMIT).data == b'[1,"a"]'
    assert in_encoding(None, JSON, limit=LIMIT).data == b"null"
    with pytest.raises(InvalidPayload, match=r"MSGPACK \(accept\)"):
        encode(b"bytes", JSON, what="result", limit=LIMIT)
    for value, encoding in ((object(), MSGPACK), ("x" * 2000, MSGPACK), ("x" * 2000, JSON)):
        with pytest.raises(InvalidPayload) as raised:
            encode(value, encoding, what="result", limit=1000)
        assert "accept" not in raised.value.message or encoding == JSON
    with pytest.raises(InvalidPayload):
        in_encoding(codec.encode("x" * 2000), MSGPACK, limit=1000)


def test_tuples_are_arrays_at_every_depth() -> None:
    value: Any = (1,)
    for _ in range(98):
        value = (value,) if len(value) else {"a": value}
    found = read(write(value, JSON, what="value", limit=LIMIT), what="value", limit=LIMIT)
    depth = 0
    while type(found) is list and type(found[0]) is list:
        found, depth = found[0], depth + 1
    assert (depth, found) == (98, [1])
    circle: list[Any] = []
    circle.append(circle)
    for encoding in (JSON, MSGPACK):
        with pytest.raises(InvalidPayload):
            encode(circle, encoding, what="value", limit=LIMIT)
