"""The messages of a handshake, encoded and decoded without the message library, which a plain pool needs for nothing else.

The bytes are the same as the library's; see ``worker.proto`` for the meaning of each field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from .fields import MOST_PARTS, read_fields
from .frame_writing import varint
from .frames import FrameError

__all__ = ["HandshakeRequest", "HandshakeResponse", "ToolSpec"]

_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
_SIGN = 1 << 63
#: Reads the fields of a message, or of a nested one.
_Read: TypeAlias = "Callable[[bytes], list[tuple[int, int | bytes]]]"


class ToolSpec(msgspec.Struct):
    """A worker's description of one of its tools.

    Attributes:
        name: The tool's name.
        description: The description, for people and for agents.
        parameters_schema: The JSON Schema of its parameters, as JSON text; empty: anything.
        result_schema: The JSON Schema of its result, or of one chunk.
        streaming: Whether it is a streaming tool.
        critical: Whether its name can't be taken over.
        idempotent: Whether a call may run again after its worker died.
        metadata: Further strings from its adapter.
    """

    name: str = ""
    description: str = ""
    parameters_schema: str = ""
    result_schema: str = ""
    streaming: bool = False
    critical: bool = False
    idempotent: bool = False
    metadata: dict[str, str] = {}

    def __bytes__(self) -> bytes:
        parts = [
            _text(b"\x0a", self.name), _text(b"\x12", self.description),
            _text(b"\x1a", self.parameters_schema), _text(b"\x22", self.result_schema),
            b"\x28\x01" if self.streaming else b"", b"\x30\x01" if self.critical else b"",
            b"\x38\x01" if self.idempotent else b"",
        ]  # fmt: skip
        for key, value in self.metadata.items():
            # An entry has both fields, empty or not.
            parts.append(_sized(b"\x42", _sized(b"\x0a", key.encode()) + _sized(b"\x12", value.encode())))
        return b"".join(parts)


class HandshakeRequest(msgspec.Struct):
    """The host's message."""

    protocol_version: int = 0
    protocol_version_min: int = 0
    worker_id: str = ""
    pool: str = ""
    request_prefix: str = ""
    capabilities: list[str] = []
    shared_memory_proof: bytes = b""
    shared_memory_pid: int = 0
    shared_memory_fd: int = 0

    def __bytes__(self) -> bytes:
        return b"".join((
            _uint(b"\x08", self.protocol_version), _uint(b"\x10", self.protocol_version_min),
            _text(b"\x1a", self.worker_id), _text(b"\x22", self.pool), _text(b"\x2a", self.request_prefix),
            *(_sized(b"\x32", name.encode()) for name in self.capabilities),
            _sized(b"\x3a", self.shared_memory_proof) if self.shared_memory_proof else b"",
            _uint(b"\x40", self.shared_memory_pid), _uint(b"\x48", self.shared_memory_fd),
        ))  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> HandshakeRequest:
        """Decode the message.

        Raises:
            ValueError: The bytes are malformed.
        """
        made = cls()
        for tag, value in _counting()(data):
            if isinstance(value, int):
                value &= _U32
                if tag == 0x08:
                    made.protocol_version = value
                elif tag == 0x10:
                    made.protocol_version_min = value
                elif tag == 0x40:
                    made.shared_memory_pid = value
                elif tag == 0x48:
                    made.shared_memory_fd = value
            elif tag == 0x1A:
                made.worker_id = value.decode()
            elif tag == 0x22:
                made.pool = value.decode()
            elif tag == 0x2A:
                made.request_prefix = value.decode()
            elif tag == 0x32:
                made.capabilities.append(value.decode())
            elif tag == 0x3A:
                made.shared_memory_proof = value
        return made


class HandshakeResponse(msgspec.Struct):
    """The worker's answer."""

    protocol_version: int = 0
    pid: int = 0
    tools: list[ToolSpec] = []
    capabilities: list[str] = []
    backend: str = ""
    implementation: str = ""
    threads: int = 0

    def __bytes__(self) -> bytes:
        return b"".join((
            _uint(b"\x08", self.protocol_version), _uint(b"\x10", self.pid & _U64),
            *(_sized(b"\x1a", bytes(tool)) for tool in self.tools),
            *(_sized(b"\x22", name.encode()) for name in self.capabilities),
            _text(b"\x2a", self.backend), _text(b"\x32", self.implementation), _uint(b"\x38", self.threads),
        ))  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> HandshakeResponse:
        """Decode the answer.

        Raises:
            ValueError: The bytes are malformed, or have too many fields.
        """
        made = cls()
        read = _counting()
        for tag, value in read(data):
            if isinstance(value, int):
                if tag == 0x08:
                    made.protocol_version = value & _U32
                elif tag == 0x10:
                    made.pid = (value ^ _SIGN) - _SIGN
                elif tag == 0x38:
                    made.threads = value & _U32
            elif tag == 0x1A:
                made.tools.append(_tool(value, read))
            elif tag == 0x22:
                made.capabilities.append(value.decode())
            elif tag == 0x2A:
                made.backend = value.decode()
            elif tag == 0x32:
                made.implementation = value.decode()
        return made


def _tool(data: bytes, read: _Read) -> ToolSpec:
    made = ToolSpec()
    for tag, value in read(data):
        if isinstance(value, int):
            if tag == 0x28:
                made.streaming = value != 0
            elif tag == 0x30:
                made.critical = value != 0
            elif tag == 0x38:
                made.idempotent = value != 0
        elif tag == 0x0A:
            made.name = value.decode()
        elif tag == 0x12:
            made.description = value.decode()
        elif tag == 0x1A:
            made.parameters_schema = value.decode()
        elif tag == 0x22:
            made.result_schema = value.decode()
        elif tag == 0x42:
            entry = {1: "", 2: ""}
            for inner, text in read(value):
                if inner in (0x0A, 0x12) and isinstance(text, bytes):
                    entry[inner >> 3] = text.decode()
            made.metadata[entry[1]] = entry[2]
    return made


def _counting() -> _Read:
    """Return a function that reads fields, with a limit on their total number."""
    left = MOST_PARTS

    def read(data: bytes) -> list[tuple[int, int | bytes]]:
        nonlocal left
        fields = read_fields(data, 0, len(data))
        left -= len(fields)
        if left < 0:
            raise FrameError(f"a message has more than {MOST_PARTS} parts")
        return fields

    return read


def _uint(tag: bytes, value: int) -> bytes:
    return tag + varint(value) if value else b""


def _text(tag: bytes, value: str) -> bytes:
    return _sized(tag, value.encode()) if value else b""


def _sized(tag: bytes, body: bytes) -> bytes:
    return b"%b%b%b" % (tag, varint(len(body)), body)
