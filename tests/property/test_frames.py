"""The lean frames are the protobuf messages, byte for byte, and nothing that is not a frame passes for one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.wire import frame_reading, frame_writing, frames
from snakepit_trio.wire.generated.snakepit import v1

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
blocks = st.builds(frames.SharedBlock, text, u64, u64)
payloads = st.builds(
    frames.Payload,
    st.sampled_from([1, 2]),
    st.binary(max_size=300),
    st.lists(st.binary(max_size=9) | blocks, max_size=3),
)
leaves = st.builds(frames.Leaf, st.lists(text, max_size=3), text)
errors = st.builds(
    frames.ErrorInfo, text, text, st.booleans(), st.lists(text, max_size=3), text, text, st.none() | payloads,
    st.lists(leaves, max_size=2),
)  # fmt: skip
outcomes = st.tuples(st.none(), st.none()) | st.tuples(payloads, st.none()) | st.tuples(st.none(), errors)
calls = st.builds(
    frames.Call, u64, u32, text, payloads, u64, u32, st.booleans(), u32, text, st.dictionaries(text, text, max_size=3)
)  # fmt: skip
host_frames = (
    calls
    | st.builds(frames.Cancel, u64, st.booleans())
    | st.builds(frames.Credit, u64, u32)
    | st.builds(frames.Ping, u64)
    | st.builds(lambda i, o: frames.HostReply(i, *o), u64, outcomes)
    | st.builds(frames.Stop, u64)
)
worker_frames = (
    st.builds(lambda i, o: frames.Reply(i, *o), u64, outcomes)
    | st.builds(lambda i, u: frames.Reply(i, undone=u), u64, st.integers(1, 9))
    | st.builds(frames.Leaving)
    | st.builds(frames.Chunk, u64, payloads)
    | st.builds(frames.Pong, u64, st.lists(u64, max_size=4), u64, u64)
    | st.builds(frames.HostCall, u64, u64, text, payloads, u64)
    | st.builds(frames.HostCancel, u64)
    | st.builds(frames.Emit, u64, text, payloads)
)
_ONEOF = {"HostReply": "host_reply", "HostCall": "host_call", "HostCancel": "host_cancel"}


def message(frame: Any) -> Any:
    """The betterproto2 message of a lean object."""
    if isinstance(frame, frames.SharedBlock):
        return v1.Buffer(shared=v1.SharedBlock(name=frame.name, offset=frame.offset, size=frame.size))
    if isinstance(frame, bytes):
        return v1.Buffer(inline=frame)
    if isinstance(frame, frames.Payload):
        return v1.Payload(
            encoding=v1.Encoding(frame.encoding), data=frame.data, buffers=[message(b) for b in frame.buffers]
        )
    values = {}
    for name in frame.__struct_fields__:
        value = getattr(frame, name)
        if isinstance(value, frames.Payload | frames.ErrorInfo):
            value = message(value)
        elif name == "leaves":
            value = [message(leaf) for leaf in value]
        elif name == "undone":
            value = v1.Undone(value) if value else None
        values[name] = value
    return getattr(v1, type(frame).__name__)(**values)


def envelope(kind: Any, frame: Any) -> Any:
    name = type(frame).__name__
    return kind(**{_ONEOF.get(name, name.lower()): message(frame)})


def plain(value: Any) -> Any:
    """A lean object as plain values, so that lists and tuples compare."""
    if hasattr(value, "__struct_fields__"):
        return type(value).__name__, [plain(getattr(value, n)) for n in value.__struct_fields__]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


@pytest.mark.parametrize("immutable", [True, False])
def test_large_values_travel_in_pieces_and_are_not_copied_unless_they_may_change(immutable: bool) -> None:
    large = bytes(range(256)) * 256
    owned = large if immutable else bytearray(large)
    payload = frames.Payload(2, large, [memoryview(owned), b"x", frames.SharedBlock("n", 1, 2)])
    for frame in (
        frames.Call(1, 2, "", payload, 3, 4, True, 5, "s", {"k": "v"}),
        frames.Call(0, 0, "named", payload),
        frames.HostReply(1, payload),
        frames.Reply(1, payload),
        frames.Chunk(1, payload),
        frames.HostCall(1, 2, "n", payload, 3),
    ):
        pieces = frame_writing.encode_pieces(frame)
        whole = b"".join(pieces)
        assert whole == frame_writing.encode(frame)
        kind = v1.HostFrame if isinstance(frame, frames.HostFrame) else v1.WorkerFrame
        stands_for = frames.Payload(2, large, [large, *payload.buffers[1:]])
        frame.payload = stands_for
        assert whole == bytes(envelope(kind, frame))
        assert sum(piece is large for piece in pieces) == (2 if immutable else 1)
        decode = frame_reading.decode_host_frame if kind is v1.HostFrame else frame_reading.decode_worker_frame
        found = decode(whole)
        assert plain(found) == plain(frame)
        # What is large is looked at where it lies.
        assert found.payload.data.obj is whole  # type: ignore[union-attr]


def field(number: int, body: bytes) -> bytes:
    return frame_writing.varint(number << 3 | 2) + frame_writing.varint(len(body)) + body


BUFFER = field(3, field(2, field(1, b"o1")))
TOO_MUCH = {
    "unknown frames": field(15, b"") * 5000,
    "known frames": field(1, b"\x08\x01") * 5000,
    "fields of a reply": field(1, b"\x08\x01" * 5000),
    "blocks of shared memory": field(1, field(2, BUFFER * (frames.MOST_BUFFERS + 1))),
    "blocks of a chunk": field(2, field(2, BUFFER * (frames.MOST_BUFFERS + 1))),
    "blocks of a host call": field(4, field(4, BUFFER * (frames.MOST_BUFFERS + 1))),
    "parts of a block": field(1, field(2, field(3, field(2, b"\x10\x01" * 5000)))),
    "calls that run": field(3, field(2, b"\x01" * 50_000)),
    "text of a failure": field(1, field(3, field(2, b"x" * 200_000))),
    "types of a failure": field(1, field(3, field(4, b"x") * 5000)),
    "leaves of a failure": field(1, field(3, field(8, b"") * 5000)),
    "an event": field(6, field(2, b"x" * 50_000)),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_more_than_any_frame_holds_is_refused(kind: str) -> None:
    with pytest.raises(frames.FrameError, match=r"more than|limit is"):
        frame_reading.decode_worker_frame(TOO_MUCH[kind])


def test_as_much_as_a_frame_may_hold_is_taken() -> None:
    found = frame_reading.decode_worker_frame(field(1, field(2, BUFFER * frames.MOST_BUFFERS)))
    assert isinstance(found, frames.Reply)
    assert found.payload is not None
    assert list(found.payload.buffers) == [frames.SharedBlock("o1", 0, 0)] * frames.MOST_BUFFERS


def test_of_what_comes_again_only_the_last_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = frame_reading._decode_payload
    times = 0

    def count(data: bytes) -> frames.Payload:
        nonlocal times
        times += 1
        return read(data)

    monkeypatch.setattr(frame_reading, "_decode_payload", count)
    first, last = field(2, b"\x08\x01"), field(2, b"\x08\x02")
    for number, kind, tag in ((1, frames.Reply, 2), (2, frames.Chunk, 2), (4, frames.HostCall, 4)):
        payloads = (first * 900 + last).replace(b"\x12\x02", bytes((tag << 3 | 2, 2)))
        found: Any = frame_reading.decode_worker_frame(field(number, b"") * 900 + field(number, payloads))
        assert type(found) is kind
        assert found.payload.encoding == 2
    assert times == 3


@given(host_frames)
def test_host_frames_are_the_messages(frame: Any) -> None:
    ours, theirs = frame_writing.encode(frame), bytes(envelope(v1.HostFrame, frame))
    assert ours == theirs
    assert plain(frame_reading.decode_host_frame(theirs)) == plain(frame)


@given(worker_frames)
def test_worker_frames_are_the_messages(frame: Any) -> None:
    ours, theirs = frame_writing.encode(frame), bytes(envelope(v1.WorkerFrame, frame))
    assert ours == theirs
    assert plain(frame_reading.decode_worker_frame(theirs)) == plain(frame)


@pytest.fixture(scope="module")
def protobuf(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same protos, compiled for protobuf's own runtime."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools compiles the protos for protobuf's runtime")
    out = tmp_path_factory.mktemp("protobuf")
    root = Path(__file__).resolve().parents[2] / "protos"
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*.proto"))
    assert protoc.main(["protoc", f"-I{root}", f"--python_out={out}", *files]) == 0
    sys.path.insert(0, str(out))
    try:
        yield importlib.import_module("snakepit.v1.worker_pb2")
    finally:
        sys.path.remove(str(out))


def test_protobufs_own_runtime_agrees(protobuf: Any) -> None:
    # Fields in protobuf's maps have no order, so what each decodes is compared, not the bytes.
    @given(host_frames | worker_frames)
    def check(frame: Any) -> None:
        ours = frame_writing.encode(frame)
        kind, decode = (
            (protobuf.HostFrame, frame_reading.decode_host_frame)
            if isinstance(frame, frames.HostFrame)
            else (protobuf.WorkerFrame, frame_reading.decode_worker_frame)
        )
        parsed = kind.FromString(ours)
        assert plain(decode(parsed.SerializeToString(deterministic=True))) == plain(frame)

    check()


@given(host_frames | worker_frames, st.data())
def test_mutated_frames_are_refused_or_frames(frame: Any, data: st.DataObject) -> None:
    raw = bytearray(frame_writing.encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for mutated in (bytes(raw), bytes(raw[: data.draw(st.integers(0, len(raw)))])):
        for decode in (frame_reading.decode_host_frame, frame_reading.decode_worker_frame):
            try:
                decode(mutated)
            except frames.FrameError:
                pass


@given(st.binary(max_size=100))
def test_garbage_is_refused_or_a_frame(raw: bytes) -> None:
    for decode in (frame_reading.decode_host_frame, frame_reading.decode_worker_frame):
        try:
            decode(raw)
        except frames.FrameError:
            pass
