"""The messages of the bridge's two RPCs that run tools, encoded and decoded without the message library.

They are on the path of every call. The bytes are the same as the library's; all other messages use the library.
"""

from __future__ import annotations

import msgspec

from snakepit_trio.wire.fields import read_fields
from snakepit_trio.wire.frame_writing import varint
from snakepit_trio.wire.frames import LARGE, MOST_BUFFERS, Buffer, FrameError, Payload, SharedBlock

__all__ = ["ExecuteToolRequest", "PayloadAnswer", "payload_answer"]

#: A buffer that is not in the message; no client shares memory with the host.
_ELSEWHERE = SharedBlock("", 0, 0)
_SIGN = 1 << 31
_U64 = (1 << 64) - 1


class ExecuteToolRequest(msgspec.Struct):
    """The message of this name; see ``bridge.proto``. A shared buffer is a block without a name, to be refused."""

    tool: str = ""
    payload: Payload | None = None
    pool: str = ""
    session_id: str = ""
    metadata: dict[str, str] = {}
    priority: int = 0
    idempotent: bool | None = None
    accept: int = 0
    unlimited: bool = False
    generation: str = ""

    @classmethod
    def parse(cls, data: bytes) -> ExecuteToolRequest:
        """Decode the message.

        Raises:
            ValueError: The bytes are malformed.
        """
        made = cls()
        payload = None
        for tag, value in read_fields(data, 0, len(data), LARGE):
            if isinstance(value, int):
                if tag == 0x30:
                    made.priority = _int32(value)
                elif tag == 0x38:
                    made.idempotent = value != 0
                elif tag == 0x40:
                    made.accept = _int32(value)
                elif tag == 0x48:
                    made.unlimited = value != 0
            elif tag == 0x0A:
                made.tool = str(value, "utf-8")
            elif tag == 0x12:
                payload = value
            elif tag == 0x1A:
                made.pool = str(value, "utf-8")
            elif tag == 0x22:
                made.session_id = str(value, "utf-8")
            elif tag == 0x2A:
                entry = {1: "", 2: ""}
                for inner, text in read_fields(value, 0, len(value)):
                    if inner in (0x0A, 0x12) and isinstance(text, bytes):
                        entry[inner >> 3] = text.decode()
                made.metadata[entry[1]] = entry[2]
            elif tag == 0x52:
                made.generation = str(value, "utf-8")
        if payload is not None:
            made.payload = _payload(payload)
        return made

    def __bytes__(self) -> bytes:
        payload = self.payload
        parts: list[bytes | bytearray | memoryview] = [_text(b"\x0a", self.tool)]
        if payload is not None:
            parts += _payload_parts(b"\x12", payload)
        if self.pool or self.session_id or self.metadata:
            parts += (_text(b"\x1a", self.pool), _text(b"\x22", self.session_id))
            for key, value in self.metadata.items():
                # An entry has both fields, empty or not.
                raw_key, raw_value = key.encode(), value.encode()
                entry = b"\x0a%b%b\x12%b%b" % (varint(len(raw_key)), raw_key, varint(len(raw_value)), raw_value)
                parts.append(_sized(b"\x2a", entry))
        if self.priority:
            parts.append(b"\x30" + varint(self.priority & _U64))
        if self.idempotent is not None:
            parts.append(b"\x38\x01" if self.idempotent else b"\x38\x00")
        if self.accept:
            parts.append(b"\x40" + varint(self.accept))
        if self.unlimited:
            parts.append(b"\x48\x01")
        if self.generation:
            parts.append(_text(b"\x52", self.generation))
        return b"".join(parts)


class PayloadAnswer(msgspec.Struct):
    """A received ``ExecuteToolResponse`` or ``ToolChunk``."""

    payload: Payload | None = None

    @classmethod
    def parse(cls, data: bytes) -> PayloadAnswer:
        """Decode the message.

        Raises:
            ValueError: The bytes are malformed.
        """
        payload = None
        for tag, value in read_fields(data, 0, len(data), LARGE):
            if tag == 0x0A and not isinstance(value, int):
                payload = value
        return cls() if payload is None else cls(_payload(payload))


def _int32(value: int) -> int:
    return ((value & 0xFFFF_FFFF) ^ _SIGN) - _SIGN


def _payload(data: bytes) -> Payload:
    encoding, body = 0, b""
    buffers: list[Buffer] = []
    for tag, value in read_fields(data, 0, len(data), LARGE):
        if isinstance(value, int):
            if tag == 0x08:
                encoding = _int32(value)
        elif tag == 0x12:
            body = value
        elif tag == 0x1A:
            if len(buffers) == MOST_BUFFERS:
                raise FrameError(f"a payload has more than {MOST_BUFFERS} buffers")
            buffers.append(_buffer(value))
    return Payload(encoding, body, buffers)


def _buffer(data: bytes) -> Buffer:
    found: Buffer = _ELSEWHERE
    for tag, value in read_fields(data, 0, len(data), LARGE):
        if tag == 0x0A and not isinstance(value, int):
            found = value
        elif tag == 0x12:
            found = _ELSEWHERE
    return found


def payload_answer(payload: Payload) -> bytes:
    """Encode an ``ExecuteToolResponse`` or a ``ToolChunk`` with this payload; both have the same bytes."""
    return b"".join(_payload_parts(b"\x0a", payload))


def _payload_parts(tag: bytes, payload: Payload) -> list[bytes | bytearray | memoryview]:
    """Return a field with a payload in parts, of which the large ones are the values themselves: they are copied once,
    when the message is joined.
    """
    data = payload.data
    parts: list[bytes | bytearray | memoryview] = [b"", b"", b""]
    if payload.encoding:
        parts[2] = b"\x08" + varint(payload.encoding)
    length = len(parts[2])
    if data:
        head = b"\x12" + varint(len(data))
        parts += (head, data)
        length += len(head) + len(data)
    for buffer in payload.buffers:
        if isinstance(buffer, SharedBlock):
            raise FrameError("a client has no shared memory with us")
        size = memoryview(buffer).nbytes
        inner = b"\x0a" + varint(size)
        head = b"\x1a%b%b" % (varint(len(inner) + size), inner)
        parts += (head, buffer)
        length += len(head) + size
    parts[:2] = (tag, varint(length))
    return parts


def _text(tag: bytes, value: str) -> bytes:
    return _sized(tag, value.encode()) if value else b""


def _sized(tag: bytes, body: bytes) -> bytes:
    return b"%b%b%b" % (tag, varint(len(body)), body)
