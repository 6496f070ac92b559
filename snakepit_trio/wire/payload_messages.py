"""Conversion of payloads to the library's messages and back, for RPCs that are not encoded as frames."""

from __future__ import annotations

from .frames import NO_PAYLOAD, Buffer, Payload
from .generated.snakepit import v1

__all__ = ["message_of", "payload_of"]


def message_of(payload: Payload) -> v1.Payload:
    """Return a payload, whose buffers are all bytes, as a message."""
    return v1.Payload(
        encoding=v1.Encoding(payload.encoding),
        data=bytes(payload.data),
        buffers=[v1.Buffer(inline=bytes(buffer)) for buffer in payload.buffers],  # type: ignore[arg-type]
    )


def payload_of(message: v1.Payload | None, elsewhere: Buffer = b"") -> Payload:
    """Return a message as a payload.

    Args:
        elsewhere: The value of a buffer that is not in the message.
    """
    if message is None:
        return NO_PAYLOAD
    buffers = [elsewhere if buffer.inline is None else buffer.inline for buffer in message.buffers]
    return Payload(int(message.encoding), message.data, buffers)
