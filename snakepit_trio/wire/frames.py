"""The frames of the Exchange stream, and what they carry.

These are the messages of ``protos/snakepit/v1/worker.proto``, encoded and decoded by hand (:mod:`.frame_writing`,
:mod:`.frame_reading`), byte for byte what any protobuf library writes (fields in ascending order, proto3 defaults left
out); a frame costs a few microseconds here where a general library needs tens. A decoder accepts all that protobuf
allows: fields in any order, unknown fields, repeated scalars packed or not. What is not a frame raises
:class:`FrameError`, whatever the bytes are.

Encoding rules: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

__all__ = [
    "EVENT_LIMIT",
    "FRAME_OVERHEAD",
    "JSON",
    "LARGE",
    "MOST_BUFFERS",
    "MSGPACK",
    "NOT_BEGUN",
    "NO_PAYLOAD",
    "STOPPED",
    "Buffer",
    "Call",
    "Cancel",
    "Chunk",
    "Credit",
    "Emit",
    "ErrorInfo",
    "Frame",
    "FrameError",
    "HostCall",
    "HostCancel",
    "HostFrame",
    "HostReply",
    "Leaf",
    "Leaving",
    "Payload",
    "Ping",
    "Pong",
    "Reply",
    "SharedBlock",
    "Stop",
    "WorkerFrame",
]

JSON = 1
MSGPACK = 2

#: Values of at least this many bytes are sent from where they lie, and looked at where they lie in their message.
LARGE = 64 * 1024

#: Largest payload of an Emit, measurements and metadata together, in bytes.
EVENT_LIMIT = 16 * 1024

#: How many buffers a payload may have: each costs several times what its name and place take on the wire.
MOST_BUFFERS = 1024

#: Room for a frame around its payload, or around a failure with all that is told of it, in bytes.
FRAME_OVERHEAD = 128 * 1024

#: Why a worker did not carry a call out; see Undone in worker.proto.
NOT_BEGUN, STOPPED = 1, 2


class FrameError(ValueError):
    """The bytes are not a frame of this protocol."""


class SharedBlock(msgspec.Struct, frozen=True):
    """A block of shared memory: the name of its place, offset and size in bytes."""

    name: str
    offset: int
    size: int


#: A large binary value of a payload: its bytes, or where they are.
Buffer: TypeAlias = bytes | bytearray | memoryview | SharedBlock


class Payload(msgspec.Struct, frozen=True):
    """An encoded value: ``encoding`` is :data:`JSON` or :data:`MSGPACK` (0 when there is none)."""

    encoding: int
    data: bytes
    buffers: Sequence[Buffer] = ()

    @property
    def size(self) -> int:
        """Bytes of the data and the buffers, wherever they are."""
        size = len(self.data)
        for buffer in self.buffers:
            size += buffer.size if isinstance(buffer, SharedBlock) else memoryview(buffer).nbytes
        return size


#: Stands for a payload that is absent. Never changed.
NO_PAYLOAD = Payload(0, b"")


class Leaf(msgspec.Struct):
    """One exception of a group."""

    types: Sequence[str] = ()
    message: str = ""


class ErrorInfo(msgspec.Struct):
    """A failure as it travels; see ``snakepit_trio.wire.failures`` for the way to and from exceptions."""

    code: str
    message: str = ""
    retryable: bool = False
    remote_types: Sequence[str] = ()
    remote_message: str = ""
    remote_traceback: str = ""
    details: Payload | None = None
    leaves: Sequence[Leaf] = ()


class Call(msgspec.Struct):
    id: int
    tool_index: int = 0
    tool: str = ""
    payload: Payload = NO_PAYLOAD
    timeout_us: int = 0
    attempt: int = 0
    stream: bool = False
    credits: int = 0
    session_id: str = ""
    metadata: Mapping[str, str] = {}
    credit_bytes: int = 0


class Cancel(msgspec.Struct):
    id: int
    recall: bool = False


class Credit(msgspec.Struct):
    id: int
    chunks: int
    size: int = 0


class Ping(msgspec.Struct):
    sequence: int


class HostReply(msgspec.Struct):
    id: int
    payload: Payload | None = None
    error: ErrorInfo | None = None


class Stop(msgspec.Struct):
    grace_us: int


class Reply(msgspec.Struct):
    """The end of a call; ``undone`` is :data:`NOT_BEGUN`, :data:`STOPPED`, or 0."""

    id: int
    payload: Payload | None = None
    error: ErrorInfo | None = None
    undone: int = 0


class Chunk(msgspec.Struct):
    id: int
    payload: Payload = NO_PAYLOAD


class Pong(msgspec.Struct):
    sequence: int
    running: Sequence[int] = ()
    rss: int = 0
    lag_us: int = 0


class HostCall(msgspec.Struct):
    id: int
    call_id: int
    name: str
    payload: Payload = NO_PAYLOAD
    timeout_us: int = 0


class HostCancel(msgspec.Struct):
    id: int


class Emit(msgspec.Struct):
    call_id: int
    name: str
    payload: Payload = NO_PAYLOAD


class Leaving(msgspec.Struct):
    """The worker ends on its own account."""


HostFrame: TypeAlias = Call | Cancel | Credit | Ping | HostReply | Stop
WorkerFrame: TypeAlias = Reply | Chunk | Pong | HostCall | HostCancel | Emit | Leaving
Frame: TypeAlias = HostFrame | WorkerFrame
