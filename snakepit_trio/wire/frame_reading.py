"""Decoding of frames; see :mod:`.frames` for the rules. Malformed bytes raise :class:`FrameError`.

The work is bounded in advance for any bytes: a message has a largest number of fields, a payload a largest number of
buffers, and only frames with a payload may be large. Of repeated occurrences of a field only the last is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping

from .fields import Field, read_fields, read_varint
from .frames import (
    EVENT_LIMIT,
    FRAME_OVERHEAD,
    LARGE,
    MOST_BUFFERS,
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
    Leaf,
    Leaving,
    Payload,
    Ping,
    Pong,
    Reply,
    SharedBlock,
    Stop,
    WorkerFrame,
)

__all__ = ["decode_error", "decode_host_frame", "decode_worker_frame"]

_U32 = (1 << 32) - 1
#: The largest frame without a payload, or with only an event's, in bytes.
_SMALL = 2 * EVENT_LIMIT


def _as_text(value: Field) -> str:
    try:
        return str(value, "utf-8")  # type: ignore[arg-type]
    except UnicodeDecodeError as exc:
        raise FrameError("a string is not UTF-8") from exc


def _decode_payload(data: bytes) -> Payload:
    encoding = 0
    body = b""
    buffers: list[Buffer] = []
    for tag, value in read_fields(data, 0, len(data), LARGE):
        if tag == 0x12:
            body = value  # type: ignore[assignment]
        elif tag == 0x08:
            encoding = value  # type: ignore[assignment]
        elif tag == 0x1A:
            if len(buffers) == MOST_BUFFERS:
                raise FrameError(f"a payload has more than {MOST_BUFFERS} buffers")
            buffers.append(_decode_buffer(value))  # type: ignore[arg-type]
    if encoding > 127:
        raise FrameError(f"encoding {encoding} is not known")
    return Payload(encoding, body, buffers)


def _decode_buffer(data: bytes) -> Buffer:
    buffer: Buffer = b""
    shared = None
    for tag, value in read_fields(data, 0, len(data), LARGE):
        if tag == 0x0A:
            buffer, shared = value, None  # type: ignore[assignment]
        elif tag == 0x12:
            shared = value
    if shared is None:
        return buffer
    name, offset, size = "", 0, 0
    for inner, item in read_fields(shared, 0, len(shared)):  # type: ignore[arg-type]
        if inner == 0x0A:
            name = _as_text(item)
        elif inner == 0x10:
            offset = item  # type: ignore[assignment]
        elif inner == 0x18:
            size = item  # type: ignore[assignment]
    return SharedBlock(name, offset, size)


def decode_error(data: bytes) -> ErrorInfo:
    """Decode an ErrorInfo message.

    Raises:
        FrameError: The bytes are malformed, or too long.
    """
    if len(data) > FRAME_OVERHEAD:
        raise FrameError(f"a failure has {len(data)} bytes; the limit is {FRAME_OVERHEAD}")
    error = ErrorInfo("")
    types: list[str] = []
    leaves: list[Leaf] = []
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
        elif tag == 0x42:
            leaves.append(_decode_leaf(value))  # type: ignore[arg-type]
    error.remote_types = types
    error.leaves = leaves
    return error


def _decode_leaf(data: bytes) -> Leaf:
    types: list[str] = []
    message = ""
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x0A:
            types.append(_as_text(value))
        elif tag == 0x12:
            message = _as_text(value)
    return Leaf(types, message)


def _decode_call(data: bytes) -> Call:
    call = Call(0)
    metadata: dict[str, str] = {}
    for tag, value in read_fields(data, 0, len(data), LARGE):
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
        elif tag == 0x58:
            call.credit_bytes = value  # type: ignore[assignment]
    call.metadata = metadata
    return call


def _decode_outcome(cls: type[Reply] | type[HostReply], data: bytes) -> Reply | HostReply:
    identity = kind = 0
    outcome: Field = b""
    for tag, value in read_fields(data, 0, len(data), LARGE):
        if tag == 0x08:
            identity = value  # type: ignore[assignment]
        elif tag == 0x12 or tag == 0x1A or (tag == 0x20 and cls is Reply):
            kind, outcome = tag, value
    if kind == 0x12:
        return cls(identity, _decode_payload(outcome))  # type: ignore[arg-type]
    if kind == 0x1A:
        return cls(identity, None, decode_error(outcome))  # type: ignore[arg-type]
    return Reply(identity, None, None, outcome) if kind else cls(identity)  # type: ignore[arg-type]


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
        elif tag == 0x18:
            credit.size = value  # type: ignore[assignment]
    return credit


def _decode_chunk(data: bytes) -> Chunk:
    chunk = Chunk(0)
    payload = None
    for tag, value in read_fields(data, 0, len(data), LARGE):
        if tag == 0x08:
            chunk.id = value  # type: ignore[assignment]
        elif tag == 0x12:
            payload = value
    if payload is not None:
        chunk.payload = _decode_payload(payload)  # type: ignore[arg-type]
    return chunk


def _decode_pong(data: bytes) -> Pong:
    _check_small(data)
    pong = Pong(0)
    running: list[int] = []
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            pong.sequence = value  # type: ignore[assignment]
        elif tag == 0x12:
            position, end = 0, len(value)  # type: ignore[arg-type]
            while position < end:
                item, position = read_varint(value, position, end)  # type: ignore[arg-type]
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
    payload = None
    for tag, value in read_fields(data, 0, len(data), LARGE):
        if tag == 0x08:
            call.id = value  # type: ignore[assignment]
        elif tag == 0x10:
            call.call_id = value  # type: ignore[assignment]
        elif tag == 0x1A:
            call.name = _as_text(value)
        elif tag == 0x22:
            payload = value
        elif tag == 0x28:
            call.timeout_us = value  # type: ignore[assignment]
    if payload is not None:
        call.payload = _decode_payload(payload)  # type: ignore[arg-type]
    return call


def _decode_emit(data: bytes) -> Emit:
    _check_small(data)
    emit = Emit(0, "")
    for tag, value in read_fields(data, 0, len(data)):
        if tag == 0x08:
            emit.call_id = value  # type: ignore[assignment]
        elif tag == 0x12:
            emit.name = _as_text(value)
        elif tag == 0x1A:
            emit.payload = _decode_payload(value)  # type: ignore[arg-type]
    return emit


def _check_small(data: bytes) -> None:
    if len(data) > _SMALL:
        raise FrameError(f"a frame of this kind has {len(data)} bytes; the limit is {_SMALL}")


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
    0x3A: lambda data: Leaving(),
}


_PLAIN: Mapping[bytes, type[Reply] | type[Chunk]] = {b"\x0a": Reply, b"\x12": Chunk}


def _plain_body(data: bytes) -> tuple[int, Payload] | None:
    """Return the id and the payload of a Reply or Chunk with exactly these fields, in our own encoder's order; None for
    any other.

    Other bytes go to the general decoder, which gives the same result for these.
    """
    end = len(data)
    try:
        size, at = data[1], 2
        if size > 127:
            size, at = read_varint(data, 1, end)
        if at + size != end or data[at] != 0x08:
            return None
        at += 1
        identity = data[at]
        at += 1
        if identity > 127:
            identity, at = read_varint(data, at - 1, end)
        if data[at] != 0x12:
            return None
        size = data[at + 1]
        at += 2
        if size > 127:
            size, at = read_varint(data, at - 1, end)
        if at + size != end or data[at] != 0x08 or data[at + 2] != 0x12:
            return None
        encoding = data[at + 1]
        size = data[at + 3]
        at += 4
        if size > 127:
            size, at = read_varint(data, at - 1, end)
        if at + size != end or encoding > 127:
            return None
    except IndexError:
        return None
    return identity, Payload(encoding, data[at:] if end - at < LARGE else memoryview(data)[at:])  # type: ignore[arg-type]


def decode_host_frame(data: bytes) -> HostFrame | None:
    """Decode a HostFrame message; None for a kind of frame that this version does not know.

    Raises:
        FrameError: The bytes are malformed.
    """
    return _decode(_HOST_DECODERS, data)  # type: ignore[return-value]


def decode_worker_frame(data: bytes) -> WorkerFrame | None:
    """Decode a WorkerFrame message; None for a kind of frame that this version does not know.

    Raises:
        FrameError: The bytes are malformed.
    """
    if data[:1] in _PLAIN:
        plain = _plain_body(data)
        if plain is not None:
            return _PLAIN[data[:1]](*plain)
    return _decode(_WORKER_DECODERS, data)  # type: ignore[return-value]


def _decode(decoders: Mapping[int, object], data: bytes) -> Frame | None:
    last: tuple[int, Field] | None = None
    for field in read_fields(data, 0, len(data), LARGE):
        if field[0] in decoders:
            last = field
    if last is None:
        return None
    try:
        return decoders[last[0]](last[1])  # type: ignore[operator,no-any-return]
    except (TypeError, AttributeError) as exc:
        raise FrameError("a field has the wrong wire type") from exc
