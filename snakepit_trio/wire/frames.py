"""The frames of the Exchange stream, encoded and decoded by hand.

These are the messages of ``protos/snakepit/v1/worker.proto``, byte for byte what any protobuf library writes (fields in
ascending order, proto3 defaults left out); a frame costs a few microseconds here where a general library needs tens.
A decoder accepts all that protobuf allows: fields in any order, unknown fields, repeated scalars packed or not. What is
not a frame raises :class:`FrameError`, whatever the bytes are.

Encoding rules: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

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

JSON = 1
MSGPACK = 2

#: The code of the error with which a worker gives back a call that it had not begun; see Cancel.recall in worker.proto.
RECALLED = "recalled"


class FrameError(ValueError):
    """The bytes are not a frame of this protocol."""


class SharedBlock(msgspec.Struct, frozen=True):
    """A block of shared memory: segment name, offset and size in bytes."""

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


#: Stands for a payload that is absent. Never changed.
NO_PAYLOAD = Payload(0, b"")


class ErrorInfo(msgspec.Struct):
    """A failure as it travels; see ``snakepit_trio.wire.failures`` for the way to and from exceptions."""

    code: str
    message: str = ""
    retryable: bool = False
    remote_types: Sequence[str] = ()
    remote_message: str = ""
    remote_traceback: str = ""
    details: Payload | None = None


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


class Cancel(msgspec.Struct):
    id: int
    recall: bool = False


class Credit(msgspec.Struct):
    id: int
    chunks: int


class Ping(msgspec.Struct):
    sequence: int


class HostReply(msgspec.Struct):
    id: int
    payload: Payload | None = None
    error: ErrorInfo | None = None


class Stop(msgspec.Struct):
    grace_us: int


class Reply(msgspec.Struct):
    id: int
    payload: Payload | None = None
    error: ErrorInfo | None = None


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


HostFrame: TypeAlias = Call | Cancel | Credit | Ping | HostReply | Stop
WorkerFrame: TypeAlias = Reply | Chunk | Pong | HostCall | HostCancel | Emit
Frame: TypeAlias = HostFrame | WorkerFrame

# ---- encoding ------------------------------------------------------------------------------------

_ONE_BYTE = [bytes((i,)) for i in range(128)]
# A oneof member is written even when it is empty, and so is a message-typed field that is set.


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    if value < 128:
        return _ONE_BYTE[value]
    if value < 16384:
        return bytes((value & 127 | 128, value >> 7))
    if value < 2097152:
        return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _uint(tag: bytes, value: int) -> bytes:
    return tag + varint(value) if value else b""


def _text(tag: bytes, value: str) -> bytes:
    if not value:
        return b""
    raw = value.encode()
    return tag + varint(len(raw)) + raw


def _sized(tag: bytes, body: bytes) -> bytes:
    return b"%b%b%b" % (tag, varint(len(body)), body)


def _payload(payload: Payload) -> bytes:
    data = payload.data
    head = b"\x08" + _ONE_BYTE[payload.encoding] if payload.encoding else b""
    body = b"%b\x12%b%b" % (head, varint(len(data)), data) if data else head
    if payload.buffers:
        return b"".join([body, *(_sized(b"\x1a", _buffer(b)) for b in payload.buffers)])
    return body


def _buffer(buffer: Buffer) -> bytes:
    if isinstance(buffer, SharedBlock):
        body = _text(b"\x0a", buffer.name) + _uint(b"\x10", buffer.offset) + _uint(b"\x18", buffer.size)
        return _sized(b"\x12", body)
    return b"".join((b"\x0a", varint(memoryview(buffer).nbytes), buffer))


def encode_error(error: ErrorInfo) -> bytes:
    """The message ErrorInfo."""
    parts = [_text(b"\x0a", error.code), _text(b"\x12", error.message), b"\x18\x01" if error.retryable else b""]
    for name in error.remote_types:
        raw = name.encode()
        parts.append(b"\x22" + varint(len(raw)) + raw)
    parts.append(_text(b"\x2a", error.remote_message))
    parts.append(_text(b"\x32", error.remote_traceback))
    if error.details is not None:
        parts.append(_sized(b"\x3a", _payload(error.details)))
    return b"".join(parts)


def _call(f: Call) -> bytes:
    body = (
        b"\x08%b\x10%b" % (varint(f.id), varint(f.tool_index))
        if f.id and f.tool_index and not f.tool
        else _call_head(f)
    )
    payload = f.payload
    if payload is not NO_PAYLOAD:
        inner = _payload(payload)
        body = b"%b\x22%b%b" % (body, varint(len(inner)), inner)
    if f.timeout_us:
        body = b"%b\x28%b" % (body, varint(f.timeout_us))
    if f.attempt:
        body = b"%b\x30%b" % (body, varint(f.attempt))
    if f.stream or f.credits or f.session_id or f.metadata:
        return body + _call_tail(f)
    return body


def _call_head(f: Call) -> bytes:
    return _uint(b"\x08", f.id) + _uint(b"\x10", f.tool_index) + _text(b"\x1a", f.tool)


def _call_tail(f: Call) -> bytes:
    parts = [b"\x38\x01" if f.stream else b"", _uint(b"\x40", f.credits), _text(b"\x4a", f.session_id)]
    for key, value in f.metadata.items():
        raw_key, raw_value = key.encode(), value.encode()
        entry = b"\x0a%b%b\x12%b%b" % (varint(len(raw_key)), raw_key, varint(len(raw_value)), raw_value)
        parts += (b"\x52", varint(len(entry)), entry)
    return b"".join(parts)


def _outcome(f: Reply | HostReply) -> bytes:
    head = b"\x08" + varint(f.id) if f.id else b""
    if f.payload is not None:
        body = _payload(f.payload)
        return b"%b\x12%b%b" % (head, varint(len(body)), body)
    if f.error is not None:
        return head + _sized(b"\x1a", encode_error(f.error))
    return head


def _pong(f: Pong) -> bytes:
    running = b"".join(map(varint, f.running))
    return b"".join(
        (
            _uint(b"\x08", f.sequence),
            _sized(b"\x12", running) if running else b"",
            _uint(b"\x18", f.rss),
            _uint(b"\x20", f.lag_us),
        )
    )


def _message(tag: bytes, payload: Payload) -> bytes:
    return b"" if payload is NO_PAYLOAD else _sized(tag, _payload(payload))


def _host_call(f: HostCall) -> bytes:
    return b"".join(
        (
            _uint(b"\x08", f.id),
            _uint(b"\x10", f.call_id),
            _text(b"\x1a", f.name),
            _message(b"\x22", f.payload),
            _uint(b"\x28", f.timeout_us),
        )
    )


_ENCODERS = {
    Call: (b"\x0a", _call),
    Cancel: (b"\x12", lambda f: _uint(b"\x08", f.id) + (b"\x10\x01" if f.recall else b"")),
    Credit: (b"\x1a", lambda f: _uint(b"\x08", f.id) + _uint(b"\x10", f.chunks)),
    Ping: (b"\x22", lambda f: _uint(b"\x08", f.sequence)),
    HostReply: (b"\x2a", _outcome),
    Stop: (b"\x32", lambda f: _uint(b"\x08", f.grace_us)),
    Reply: (b"\x0a", _outcome),
    Chunk: (b"\x12", lambda f: _uint(b"\x08", f.id) + _message(b"\x12", f.payload)),
    Pong: (b"\x1a", _pong),
    HostCall: (b"\x22", _host_call),
    HostCancel: (b"\x2a", lambda f: _uint(b"\x08", f.id)),
    Emit: (
        b"\x32",
        lambda f: _uint(b"\x08", f.call_id) + _text(b"\x12", f.name) + _message(b"\x1a", f.payload),
    ),
}


def encode(frame: Frame) -> bytes:
    """The HostFrame or WorkerFrame message that holds this frame."""
    tag, encoder = _ENCODERS[type(frame)]
    body = encoder(frame)
    return b"%b%b%b" % (tag, varint(len(body)), body)


# ---- decoding ------------------------------------------------------------------------------------

_U64 = (1 << 64) - 1
_U32 = (1 << 32) - 1

_Field: TypeAlias = "int | bytes"


def read_fields(data: bytes, position: int, end: int) -> list[tuple[int, _Field]]:
    """The fields of one message as (tag, value): an int for a varint, bytes for what has a length.

    Fixed-width fields and groups are skipped, for no message here has them.
    """
    out: list[tuple[int, _Field]] = []
    while position < end:
        tag = data[position]
        position += 1
        if tag > 127:
            tag, position = _read_varint(data, position - 1, end)
        kind = tag & 7
        if kind == 0 or kind == 2:
            if position >= end:
                raise FrameError("a field is cut off")
            value = data[position]
            position += 1
            if value > 127:
                value, position = _read_varint(data, position - 1, end)
            if kind == 0:
                out.append((tag, value))
                continue
            stop = position + value
            if stop > end:
                raise FrameError("a field is longer than its message")
            out.append((tag, data[position:stop]))
            position = stop
        elif kind == 5:
            position += 4
        elif kind == 1:
            position += 8
        else:
            raise FrameError(f"wire type {kind} is not used by this protocol")
        if tag < 8:
            raise FrameError("field number 0")
    if position != end:
        raise FrameError("a field is cut off")
    return out


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise FrameError("a varint is cut off or too long")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _U64, position
        shift += 7


def _as_text(value: _Field) -> str:
    try:
        return value.decode()  # type: ignore[union-attr]
    except UnicodeDecodeError as exc:
        raise FrameError("a string is not UTF-8") from exc


def _decode_payload(data: bytes) -> Payload:
    encoding = 0
    body = b""
    buffers: list[Buffer] = []
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x12:
            body = value  # type: ignore[assignment]
        elif tag == 0x08:
            encoding = value  # type: ignore[assignment]
        elif tag == 0x1A:
            buffers.append(_decode_buffer(value))  # type: ignore[arg-type]
    if encoding > 127:
        raise FrameError(f"encoding {encoding} is not known")
    return Payload(encoding, body, buffers)


def _decode_buffer(data: bytes) -> Buffer:
    buffer: Buffer = b""
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x0A:
            buffer = value  # type: ignore[assignment]
        elif tag == 0x12:
            name, offset, size = "", 0, 0
            for inner, item in read_fields(value, 0, len(value)):  # type: ignore[arg-type]
                if inner == 0x0A:
                    name = _as_text(item)
                elif inner == 0x10:
                    offset = item  # type: ignore[assignment]
                elif inner == 0x18:
                    size = item  # type: ignore[assignment]
            buffer = SharedBlock(name, offset, size)
    return buffer


def decode_error(data: bytes) -> ErrorInfo:
    """The message ErrorInfo, from its bytes."""
    error = ErrorInfo("")
    types: list[str] = []
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x0A:
            error.code = _as_text(value)
        elif tag == 0x12:
            error.message = _as_text(value)
        elif tag == 0x18:
            error.retryable = bool(value)
        elif tag == 0x22:
            types.append(_as_text(value))
        elif tag == 0x2A:
            error.remote_message = _as_text(value)
        elif tag == 0x32:
            error.remote_traceback = _as_text(value)
        elif tag == 0x3A:
            error.details = _decode_payload(value)  # type: ignore[arg-type]
    error.remote_types = types
    return error


def _decode_call(data: bytes) -> Call:
    call = Call(0)
    metadata: dict[str, str] = {}
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            call.id = value  # type: ignore[assignment]
        elif tag == 0x10:
            call.tool_index = value & _U32  # type: ignore[operator]
        elif tag == 0x22:
            call.payload = _decode_payload(value)  # type: ignore[arg-type]
        elif tag == 0x28:
            call.timeout_us = value  # type: ignore[assignment]
        elif tag == 0x30:
            call.attempt = value & _U32  # type: ignore[operator]
        elif tag == 0x1A:
            call.tool = _as_text(value)
        elif tag == 0x38:
            call.stream = bool(value)
        elif tag == 0x40:
            call.credits = value & _U32  # type: ignore[operator]
        elif tag == 0x4A:
            call.session_id = _as_text(value)
        elif tag == 0x52:
            key = text = ""
            for inner, item in read_fields(value, 0, len(value)):  # type: ignore[arg-type]
                if inner == 0x0A:
                    key = _as_text(item)
                elif inner == 0x12:
                    text = _as_text(item)
            metadata[key] = text
    call.metadata = metadata
    return call


def _decode_outcome(cls: type[Reply] | type[HostReply], data: bytes) -> Reply | HostReply:
    reply = cls(0)
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            reply.id = value  # type: ignore[assignment]
        elif tag == 0x12:
            reply.payload, reply.error = _decode_payload(value), None  # type: ignore[arg-type]
        elif tag == 0x1A:
            reply.payload, reply.error = None, decode_error(value)  # type: ignore[arg-type]
    return reply


def _decode_id(data: bytes) -> int:
    identity = 0
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            identity = value  # type: ignore[assignment]
    return identity


def _decode_cancel(data: bytes) -> Cancel:
    cancel = Cancel(0)
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            cancel.id = value  # type: ignore[assignment]
        elif tag == 0x10:
            cancel.recall = bool(value)
    return cancel


def _decode_credit(data: bytes) -> Credit:
    credit = Credit(0, 0)
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            credit.id = value  # type: ignore[assignment]
        elif tag == 0x10:
            credit.chunks = value & _U32  # type: ignore[operator]
    return credit


def _decode_chunk(data: bytes) -> Chunk:
    chunk = Chunk(0)
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            chunk.id = value  # type: ignore[assignment]
        elif tag == 0x12:
            chunk.payload = _decode_payload(value)  # type: ignore[arg-type]
    return chunk


def _decode_pong(data: bytes) -> Pong:
    pong = Pong(0)
    running: list[int] = []
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            pong.sequence = value  # type: ignore[assignment]
        elif tag == 0x12:
            position, end = 0, len(value)  # type: ignore[arg-type]
            while position < end:
                item, position = _read_varint(value, position, end)  # type: ignore[arg-type]
                running.append(item)
        elif tag == 0x10:
            running.append(value)  # type: ignore[arg-type]
        elif tag == 0x18:
            pong.rss = value  # type: ignore[assignment]
        elif tag == 0x20:
            pong.lag_us = value  # type: ignore[assignment]
    pong.running = running
    return pong


def _decode_host_call(data: bytes) -> HostCall:
    call = HostCall(0, 0, "")
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            call.id = value  # type: ignore[assignment]
        elif tag == 0x10:
            call.call_id = value  # type: ignore[assignment]
        elif tag == 0x1A:
            call.name = _as_text(value)
        elif tag == 0x22:
            call.payload = _decode_payload(value)  # type: ignore[arg-type]
        elif tag == 0x28:
            call.timeout_us = value  # type: ignore[assignment]
    return call


def _decode_emit(data: bytes) -> Emit:
    emit = Emit(0, "")
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            emit.call_id = value  # type: ignore[assignment]
        elif tag == 0x12:
            emit.name = _as_text(value)
        elif tag == 0x1A:
            emit.payload = _decode_payload(value)  # type: ignore[arg-type]
    return emit


_HOST_DECODERS = {
    0x0A: _decode_call,
    0x12: _decode_cancel,
    0x1A: _decode_credit,
    0x22: lambda data: Ping(_decode_id(data)),
    0x2A: lambda data: _decode_outcome(HostReply, data),
    0x32: lambda data: Stop(_decode_id(data)),
}
_WORKER_DECODERS = {
    0x0A: lambda data: _decode_outcome(Reply, data),
    0x12: _decode_chunk,
    0x1A: _decode_pong,
    0x22: _decode_host_call,
    0x2A: lambda data: HostCancel(_decode_id(data)),
    0x32: _decode_emit,
}


_PLAIN: Mapping[bytes, type[Reply] | type[Chunk]] = {b"\x0a": Reply, b"\x12": Chunk}


def _plain_body(data: bytes) -> tuple[int, Payload] | None:
    """The id and the payload of a Reply or Chunk that has just these, as our own encoder writes them; None for any other.

    All that it takes are the bytes in one order, so nothing is taken here that the general decoder would see otherwise.
    """
    end = len(data)
    try:
        size, at = data[1], 2
        if size > 127:
            size, at = _read_varint(data, 1, end)
        if at + size != end or data[at] != 0x08:
            return None
        at += 1
        identity = data[at]
        at += 1
        if identity > 127:
            identity, at = _read_varint(data, at - 1, end)
        if data[at] != 0x12:
            return None
        size = data[at + 1]
        at += 2
        if size > 127:
            size, at = _read_varint(data, at - 1, end)
        if at + size != end or data[at] != 0x08 or data[at + 2] != 0x12:
            return None
        encoding = data[at + 1]
        size = data[at + 3]
        at += 4
        if size > 127:
            size, at = _read_varint(data, at - 1, end)
        if at + size != end or encoding > 127:
            return None
    except IndexError:
        return None
    return identity, Payload(encoding, data[at:])


def decode_host_frame(data: bytes) -> HostFrame | None:
    """The frame in a HostFrame message, or None for a kind of frame that this version does not know.

    Raises:
        FrameError: The bytes are not a HostFrame.
    """
    return _decode(_HOST_DECODERS, data)  # type: ignore[return-value]


def decode_worker_frame(data: bytes) -> WorkerFrame | None:
    """The frame in a WorkerFrame message, or None for a kind of frame that this version does not know.

    Raises:
        FrameError: The bytes are not a WorkerFrame.
    """
    if data[:1] in _PLAIN:
        plain = _plain_body(data)
        if plain is not None:
            return _PLAIN[data[:1]](*plain)
    return _decode(_WORKER_DECODERS, data)  # type: ignore[return-value]


def _decode(decoders: Mapping[int, object], data: bytes) -> Frame | None:
    frame: Frame | None = None
    try:
        for tag, value in read_fields(data, 0, len(data)):
            decoder = decoders.get(tag)
            if decoder is not None:
                frame = decoder(value)  # type: ignore[operator]
    except (TypeError, AttributeError) as exc:
        raise FrameError("a field has the wrong wire type") from exc
    return frame
