"""The frames of the Exchange stream.

These are the messages of ``protos/snakepit/v1/worker.proto``, encoded and decoded by hand (:mod:`.frame_writing`,
:mod:`.frame_reading`), byte for byte as any protobuf library does (fields in ascending order, proto3 defaults omitted).
A frame costs a few microseconds here, and tens in a general library. A decoder accepts everything that protobuf allows:
fields in any order, unknown fields, repeated scalars packed or not. Malformed bytes raise :class:`FrameError`.

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

#: Values of at least this many bytes are sent without a copy, and viewed inside their message on receipt.
LARGE = 64 * 1024

#: The largest payload of an Emit, measurements and metadata together, in bytes.
EVENT_LIMIT = 16 * 1024

#: The largest number of buffers of a payload: each costs several times the bytes of its description on the wire.
MOST_BUFFERS = 1024

#: The room for the rest of a frame beside its payload, or for a whole error, in bytes.
FRAME_OVERHEAD = 128 * 1024

#: Why a worker did not complete a call; see Undone in worker.proto.
NOT_BEGUN, STOPPED = 1, 2


class FrameError(ValueError):
    """The bytes are not a frame of this protocol."""


class SharedBlock(msgspec.Struct, frozen=True):
    """A block of shared memory: its place, offset and size in bytes."""

    name: str
    offset: int
    size: int


#: A large binary value of a payload: its bytes, or its block.
Buffer: TypeAlias = bytes | bytearray | memoryview | SharedBlock


class Payload(msgspec.Struct, frozen=True):
    """An encoded value: ``encoding`` is :data:`JSON` or :data:`MSGPACK` (0 for none)."""

    encoding: int
    data: bytes
    buffers: Sequence[Buffer] = ()

    @property
    def size(self) -> int:
        """The bytes of the data and the buffers, wherever they are."""
        size = len(self.data)
        for buffer in self.buffers:
            size += buffer.size if isinstance(buffer, SharedBlock) else memoryview(buffer).nbytes
        return size


#: A missing payload.
NO_PAYLOAD = Payload(0, b"")


class Leaf(msgspec.Struct):
    """One exception of a group."""

    types: Sequence[str] = ()
    message: str = ""


class ErrorInfo(msgspec.Struct):
    """A transmitted error; see ``snakepit_trio.wire.failures`` for the conversion to and from exceptions."""

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
    """The worker ends on its own."""


HostFrame: TypeAlias = Call | Cancel | Credit | Ping | HostReply | Stop
WorkerFrame: TypeAlias = Reply | Chunk | Pong | HostCall | HostCancel | Emit | Leaving
Frame: TypeAlias = HostFrame | WorkerFrame
