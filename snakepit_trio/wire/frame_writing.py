"""Encoding of frames; see :mod:`.frames` for the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .frames import (
    LARGE,
    NO_PAYLOAD,
    Buffer,
    Call,
    Cancel,
    Chunk,
    Credit,
    Emit,
    ErrorInfo,
    Frame,
    HostCall,
    HostCancel,
    HostReply,
    Leaf,
    Leaving,
    Payload,
    Ping,
    Pong,
    Reply,
    SharedBlock,
    Stop,
)

__all__ = ["encode", "encode_error", "encode_pieces", "varint"]

_ONE_BYTE = [bytes((i,)) for i in range(128)]
# A oneof member is written even when it is empty, and so is a message-typed field that is set.


def varint(value: int) -> bytes:
    """Encode a number as a protobuf varint."""
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
        return b"".join([body, *(piece for buffer in payload.buffers for piece in _buffer(buffer))])
    return body


def _buffer(buffer: Buffer) -> list[bytes]:
    if isinstance(buffer, SharedBlock):
        body = _text(b"\x0a", buffer.name) + _uint(b"\x10", buffer.offset) + _uint(b"\x18", buffer.size)
        return [_sized(b"\x1a", _sized(b"\x12", body))]
    raw = _fixed(buffer)
    size = varint(len(raw))
    return [b"\x1a%b\x0a%b" % (varint(1 + len(size) + len(raw)), size), raw]


def _fixed(buffer: bytes | bytearray | memoryview) -> bytes:
    """Copy a buffer's bytes, because its owner may change it while they are sent."""
    if isinstance(buffer, memoryview) and type(buffer.obj) is bytes and buffer.nbytes == len(buffer.obj):
        return buffer.obj
    return bytes(buffer)


def encode_error(error: ErrorInfo) -> bytes:
    """Encode an ErrorInfo message."""
    parts = [_text(b"\x0a", error.code), _text(b"\x12", error.message), b"\x18\x01" if error.retryable else b""]
    for name in error.remote_types:
        raw = name.encode()
        parts.append(b"\x22" + varint(len(raw)) + raw)
    parts.append(_text(b"\x2a", error.remote_message))
    parts.append(_text(b"\x32", error.remote_traceback))
    if error.details is not None:
        parts.append(_sized(b"\x3a", _payload(error.details)))
    parts += (_sized(b"\x42", _leaf(leaf)) for leaf in error.leaves)
    return b"".join(parts)


def _leaf(leaf: Leaf) -> bytes:
    return b"".join((*(_sized(b"\x0a", name.encode()) for name in leaf.types), _text(b"\x12", leaf.message)))


def _call(f: Call) -> bytes:
    payload = f.payload
    if f.tool_index and not (f.tool or payload.buffers or f.session_id or f.metadata or f.stream):
        # Most calls, in one step.
        data = payload.data
        size = len(data)
        inner = b"\x08%b\x12%b%b" % (_ONE_BYTE[payload.encoding], _ONE_BYTE[size] if size < 128 else varint(size), data)
        if size and payload.encoding and f.id and f.timeout_us and f.attempt and not (f.credits or f.credit_bytes):
            size, index, attempt = len(inner), f.tool_index, f.attempt
            return b"\x08%b\x10%b\x22%b%b\x28%b\x30%b" % (
                varint(f.id),
                _ONE_BYTE[index] if index < 128 else varint(index),
                _ONE_BYTE[size] if size < 128 else varint(size),
                inner,
                varint(f.timeout_us),
                _ONE_BYTE[attempt] if attempt < 128 else varint(attempt),
            )
    body = _call_head(f)
    if payload is not NO_PAYLOAD:
        inner = _payload(payload)
        body = b"%b\x22%b%b" % (body, varint(len(inner)), inner)
    return body + _call_tail(f)


def _call_head(f: Call) -> bytes:
    if f.id and f.tool_index and not f.tool:
        return b"\x08%b\x10%b" % (varint(f.id), varint(f.tool_index))
    return _uint(b"\x08", f.id) + _uint(b"\x10", f.tool_index) + _text(b"\x1a", f.tool)


def _call_tail(f: Call) -> bytes:
    tail = b"\x28" + varint(f.timeout_us) if f.timeout_us else b""
    if f.attempt:
        tail = b"%b\x30%b" % (tail, varint(f.attempt))
    if not (f.stream or f.credits or f.session_id or f.metadata or f.credit_bytes):
        return tail
    parts = [tail, b"\x38\x01" if f.stream else b"", _uint(b"\x40", f.credits), _text(b"\x4a", f.session_id)]
    for key, value in f.metadata.items():
        raw_key, raw_value = key.encode(), value.encode()
        entry = b"\x0a%b%b\x12%b%b" % (varint(len(raw_key)), raw_key, varint(len(raw_value)), raw_value)
        parts += (b"\x52", varint(len(entry)), entry)
    parts.append(_uint(b"\x58", f.credit_bytes))
    return b"".join(parts)


def _outcome(f: Reply | HostReply) -> bytes:
    head = b"\x08" + varint(f.id) if f.id else b""
    if f.payload is not None:
        body = _payload(f.payload)
        return b"%b\x12%b%b" % (head, varint(len(body)), body)
    if f.error is not None:
        return head + _sized(b"\x1a", encode_error(f.error))
    return head


def _reply(f: Reply) -> bytes:
    body = _outcome(f)
    return b"%b\x20%b" % (body, varint(f.undone)) if f.undone else body


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


def _host_call_head(f: HostCall) -> bytes:
    return _uint(b"\x08", f.id) + _uint(b"\x10", f.call_id) + _text(b"\x1a", f.name)


def _host_call(f: HostCall) -> bytes:
    return b"".join((_host_call_head(f), _message(b"\x22", f.payload), _uint(b"\x28", f.timeout_us)))


_ENCODERS = {
    Call: (b"\x0a", _call),
    Cancel: (b"\x12", lambda f: _uint(b"\x08", f.id) + (b"\x10\x01" if f.recall else b"")),
    Credit: (b"\x1a", lambda f: _uint(b"\x08", f.id) + _uint(b"\x10", f.chunks) + _uint(b"\x18", f.size)),
    Ping: (b"\x22", lambda f: _uint(b"\x08", f.sequence)),
    HostReply: (b"\x2a", _outcome),
    Stop: (b"\x32", lambda f: _uint(b"\x08", f.grace_us)),
    Reply: (b"\x0a", _reply),
    Chunk: (b"\x12", lambda f: _uint(b"\x08", f.id) + _message(b"\x12", f.payload)),
    Pong: (b"\x1a", _pong),
    HostCall: (b"\x22", _host_call),
    HostCancel: (b"\x2a", lambda f: _uint(b"\x08", f.id)),
    Emit: (
        b"\x32",
        lambda f: _uint(b"\x08", f.call_id) + _text(b"\x12", f.name) + _message(b"\x1a", f.payload),
    ),
    Leaving: (b"\x3a", lambda f: b""),
}


#: The fields before and after the payload of a frame, and the payload's tag.
_AROUND: dict[type, tuple[Callable[[Any], bytes], bytes, Callable[[Any], bytes]]] = {
    Call: (_call_head, b"\x22", _call_tail),
    HostReply: (lambda f: _uint(b"\x08", f.id), b"\x12", lambda f: b""),
    Reply: (lambda f: _uint(b"\x08", f.id), b"\x12", lambda f: b""),
    Chunk: (lambda f: _uint(b"\x08", f.id), b"\x12", lambda f: b""),
    HostCall: (_host_call_head, b"\x22", lambda f: _uint(b"\x28", f.timeout_us)),
    Emit: (lambda f: _uint(b"\x08", f.call_id) + _text(b"\x12", f.name), b"\x1a", lambda f: b""),
}


def encode_pieces(frame: Frame) -> list[bytes]:
    """Return the message of :func:`encode` in pieces, of which the large ones are the values themselves, uncopied.

    A value that may still change is copied, once.
    """
    payload: Payload | None = getattr(frame, "payload", None)
    if payload is None or not (payload.buffers or len(payload.data) >= LARGE):
        tag, encoder = _ENCODERS[type(frame)]
        body = encoder(frame)
        size = len(body)
        return [b"%b%b%b" % (tag, _ONE_BYTE[size] if size < 128 else varint(size), body)]
    head, inner_tag, tail = _AROUND[type(frame)]
    after = tail(frame)
    data = payload.data
    inner = [b"\x08" + _ONE_BYTE[payload.encoding] if payload.encoding else b""]
    if data:
        inner += [b"\x12" + varint(len(data)), data]
    for buffer in payload.buffers:
        inner += _buffer(buffer)
    size = sum(map(len, inner))
    before = b"%b%b%b" % (head(frame), inner_tag, varint(size))
    tag, _ = _ENCODERS[type(frame)]
    return [b"%b%b%b" % (tag, varint(len(before) + size + len(after)), before), *inner, after]


def encode(frame: Frame) -> bytes:
    """Return the HostFrame or WorkerFrame message of this frame."""
    tag, encoder = _ENCODERS[type(frame)]
    body = encoder(frame)
    return b"%b%b%b" % (tag, varint(len(body)), body)
