"""The frames of the Exchange stream, encoded and decoded by hand.

These are the messages of ``protos/snakepit/v1/worker.proto``, byte for byte what any protobuf library writes (fields in
ascending order, proto3 defaults left out); a frame costs a few microseconds here where a general library needs tens.
A decoder accepts all that protobuf allows: fields in any order, unknown fields, repeated scalars packed or not. What is
not a frame raises :class:`FrameError`, whatever the bytes are.

Encoding rules: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from .frame_reading import decode_error, decode_host_frame, decode_worker_frame, read_fields
from .frame_types import (
    JSON,
    MSGPACK,
    NO_PAYLOAD,
    RECALLED,
    Buffer,
    Call,
    Cancel,
    Chunk,
    Credit,
    Emit,
    ErrorInfo,
    Frame,
    FrameError,
    HostCall,
    HostCancel,
    HostFrame,
    HostReply,
    Payload,
    Ping,
    Pong,
    Reply,
    SharedBlock,
    Stop,
    WorkerFrame,
)
from .frame_writing import encode, encode_error, varint

__all__ = [
    "JSON",
    "MSGPACK",
    "NO_PAYLOAD",
    "RECALLED",
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
    "Payload",
    "Ping",
    "Pong",
    "Reply",
    "SharedBlock",
    "Stop",
    "WorkerFrame",
    "decode_error",
    "decode_host_frame",
    "decode_worker_frame",
    "encode",
    "encode_error",
    "read_fields",
    "varint",
]
