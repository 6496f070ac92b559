"""Messages are read as the library reads them, unless there is more in them than in any that an honest peer sends."""

from __future__ import annotations

import betterproto2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.wire.fields import MOST_FIELDS
from snakepit_trio.wire.frame_writing import varint
from snakepit_trio.wire.frames import FrameError
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.messages import MOST_PARTS, read_message

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
specs = st.builds(v1.ToolSpec, name=texts, metadata=st.dictionaries(texts, texts, max_size=3))
messages: st.SearchStrategy[betterproto2.Message] = st.one_of(
    st.builds(v1.RegisterToolsRequest, tools=st.lists(specs, max_size=4), session_id=texts),
    st.builds(v1.OpenSessionRequest, session_id=texts, metadata=st.dictionaries(texts, texts, max_size=3)),
    st.builds(
        v1.PutValueRequest,
        key=texts,
        payload=st.builds(v1.Payload, data=st.binary(max_size=9), buffers=st.lists(st.builds(v1.Buffer), max_size=3)),
    ),
)


@given(messages)
def test_what_was_written_is_read(message: betterproto2.Message) -> None:
    assert read_message(type(message), bytes(message)) == message


ENTRY = b"\x0a\x01k" * 3000
ENTRIES = b"\x42\x00" * 500
BUFFERS = v1.Payload(buffers=[v1.Buffer(inline=b"")] * 800)
TOO_MUCH: dict[str, tuple[type[betterproto2.Message], bytes, int]] = {
    "tools": (v1.RegisterToolsRequest, b"\x0a\x00" * 5000, MOST_FIELDS),
    "fields of tools": (
        v1.RegisterToolsRequest,
        bytes(v1.RegisterToolsRequest(tools=[v1.ToolSpec(name="x", description="y")])) * 2000,
        MOST_PARTS,
    ),
    "metadata": (v1.RegisterToolsRequest, (b"\x0a" + varint(len(ENTRIES)) + ENTRIES) * 9, MOST_PARTS),
    "parts of metadata": (v1.ToolSpec, b"\x42" + varint(len(ENTRY)) + ENTRY, MOST_FIELDS),
    "buffers": (v1.PutValueRequest, bytes(v1.PutValueRequest(payload=BUFFERS)) * 3, MOST_PARTS),
    "replies": (
        v1.ClientToolFrame,
        bytes(v1.ClientToolFrame(reply=v1.ClientToolReply(payload=BUFFERS))) * 3,
        MOST_PARTS,
    ),
    "what is not known": (v1.PingRequest, b"\x7a\x00" * 5000, MOST_FIELDS),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_more_than_any_message_holds_is_refused_unread(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message, data, limit = TOO_MUCH[kind]
    monkeypatch.setattr(message, "parse", lambda data: pytest.fail("it was read"))
    with pytest.raises(FrameError, match=f"more than {limit}"):
        read_message(message, data)


def test_what_is_cut_off_is_refused() -> None:
    whole = bytes(v1.RegisterToolsRequest(tools=[v1.ToolSpec(name="tool")]))
    for size in range(1, len(whole)):
        with pytest.raises(FrameError):
            read_message(v1.RegisterToolsRequest, whole[:size])
