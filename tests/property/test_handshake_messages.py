"""The messages of a handshake are the library's own, byte by byte, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.wire import handshake_messages as ours
from snakepit_trio.wire.generated.snakepit import v1

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
u32 = st.integers(0, (1 << 32) - 1)
flags = st.booleans()
specs = st.builds(
    ours.ToolSpec,
    name=texts, description=texts, parameters_schema=texts, result_schema=texts, streaming=flags, critical=flags,
    idempotent=flags, metadata=st.dictionaries(texts, texts, max_size=3),
)  # fmt: skip
requests = st.builds(
    ours.HandshakeRequest,
    protocol_version=u32, protocol_version_min=u32, worker_id=texts, pool=texts, request_prefix=texts,
    capabilities=st.lists(texts, max_size=3), shared_memory_proof=st.binary(max_size=40), shared_memory_pid=u32,
    shared_memory_fd=u32,
)  # fmt: skip
answers = st.builds(
    ours.HandshakeResponse,
    protocol_version=u32, pid=st.integers(-(1 << 63), (1 << 63) - 1), tools=st.lists(specs, max_size=3),
    capabilities=st.lists(texts, max_size=3), backend=texts, implementation=texts, threads=u32,
)  # fmt: skip


def theirs(message: Any) -> Any:
    """The same message as the library's object."""
    values = msgspec.structs.asdict(message)
    if "tools" in values:
        values["tools"] = [theirs(tool) for tool in values["tools"]]
    return getattr(v1, type(message).__name__)(**values)


@given(st.one_of(requests, answers))
def test_both_write_and_read_the_same(message: Any) -> None:
    data = bytes(message)
    library: Any = theirs(message)
    assert data == bytes(library)
    assert type(message).parse(bytes(library)) == message
    assert type(library).parse(data) == library


@given(specs)
def test_a_tool_is_told_as_the_library_tells_it(spec: ours.ToolSpec) -> None:
    assert bytes(spec) == bytes(theirs(spec))


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_or_read(data: bytes) -> None:
    for kind in (ours.HandshakeRequest, ours.HandshakeResponse):
        try:
            made = kind.parse(data)
        except ValueError:
            continue
        assert kind.parse(bytes(made)) == made


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert ours.HandshakeResponse.parse(b"\x7a\x01x" + b"\x78\x05" + b"\x38\x02").threads == 2
    # A field of another kind than is due.
    assert ours.HandshakeRequest.parse(b"\x0a\x01x\x18\x05") == ours.HandshakeRequest()


def test_text_is_text() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        ours.HandshakeResponse.parse(b"\x2a\x01\xff")
