"""The lean messages of the bridge are those of the library, byte for byte."""

from __future__ import annotations

from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.wire.frames import Payload, SharedBlock
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.http2.lean_hpack import FixedHeaders
from snakepit_trio.wire.tool_messages import ExecuteToolRequest, PayloadAnswer, payload_answer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
inline = st.builds(lambda data: v1.Buffer(inline=data), st.binary(max_size=200))
shared = st.builds(lambda name: v1.Buffer(shared=v1.SharedBlock(name=name, size=1)), texts)
payloads = st.builds(
    v1.Payload,
    encoding=st.sampled_from(list(v1.Encoding)),
    data=st.binary(max_size=200),
    buffers=st.lists(inline | shared, max_size=3),
)
requests = st.builds(
    v1.ExecuteToolRequest,
    tool=texts,
    payload=st.none() | payloads,
    pool=texts,
    session_id=texts,
    metadata=st.dictionaries(texts, texts, max_size=3),
    priority=st.integers(-(1 << 31), (1 << 31) - 1),
    idempotent=st.none() | st.booleans(),
    accept=st.sampled_from(list(v1.Encoding)),
    unlimited=st.booleans(),
    generation=texts,
)


def plain(payload: v1.Payload | None) -> Any:
    if payload is None:
        return None
    buffers = [SharedBlock("", 0, 0) if b.inline is None else b.inline for b in payload.buffers]
    return Payload(int(payload.encoding), payload.data, buffers)


@given(requests)
def test_a_request_is_read_as_the_library_wrote_it(request: v1.ExecuteToolRequest) -> None:
    found = ExecuteToolRequest.parse(bytes(request))
    assert found.payload == plain(request.payload)
    for name in (
        "tool",
        "pool",
        "session_id",
        "metadata",
        "priority",
        "idempotent",
        "accept",
        "unlimited",
        "generation",
    ):
        assert getattr(found, name) == getattr(request, name), name


@given(
    requests.filter(
        lambda request: request.payload is None or all(b.inline is not None for b in request.payload.buffers)
    )
)
def test_a_request_is_written_as_the_library_would(request: v1.ExecuteToolRequest) -> None:
    names = ("tool", "pool", "session_id", "metadata", "priority", "idempotent", "accept", "unlimited", "generation")
    fields = {name: getattr(request, name) for name in names}
    made = ExecuteToolRequest(payload=plain(request.payload), **{**fields, "accept": int(request.accept)})
    assert bytes(made) == bytes(request)


@given(st.binary(max_size=60))
def test_whatever_comes_is_a_request_or_a_value_error(data: bytes) -> None:
    try:
        ExecuteToolRequest.parse(data)
    except ValueError:
        pass
    try:
        PayloadAnswer.parse(data)
    except ValueError:
        pass


@given(payloads.filter(lambda payload: all(b.inline is not None for b in payload.buffers)))
def test_an_answer_is_what_the_library_would_write(payload: v1.Payload) -> None:
    written = payload_answer(plain(payload))
    assert written == bytes(v1.ExecuteToolResponse(payload=payload)) == bytes(v1.ToolChunk(payload=payload))
    assert PayloadAnswer.parse(written).payload == plain(payload)
    assert PayloadAnswer.parse(b"").payload is None


def test_an_answer_has_no_shared_memory() -> None:
    with pytest.raises(ValueError, match="shared"):
        payload_answer(Payload(1, b"", [SharedBlock("x", 0, 1)]))


def test_fixed_headers_say_what_they_should_and_change_no_table() -> None:
    headers = FixedHeaders((":status", "200"), ("content-type", "application/grpc"), ("x-empty", ""))
    decoder = hpack.Decoder()
    assert [tuple(item) for item in decoder.decode(headers.block)] == list(headers)
    assert len(decoder.header_table.dynamic_entries) == 0
