"""Values in the bridge's messages, as the client writes and reads them: always MSGPACK, so that they come back exact."""

from __future__ import annotations

from typing import Any

from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import MSGPACK, Payload
from snakepit_trio.wire.generated.snakepit import v1

__all__ = ["decode", "pack", "unpack"]


def pack(value: Any, *, what: str, limit: int) -> v1.Payload:
    """A value as a payload.

    Raises:
        InvalidParameter: It, or something in it, can't travel; ``details["path"]`` says where it is.
    """
    made = codec.encode(value, what=what, limit=limit)
    return v1.Payload(
        encoding=v1.Encoding(MSGPACK),
        data=made.data,
        buffers=[v1.Buffer(inline=bytes(buffer)) for buffer in made.buffers],  # type: ignore[arg-type]
    )


def unpack(message: v1.Payload | None, *, what: str, limit: int) -> Any:
    """The value of a payload.

    Raises:
        InvalidPayload: It does not decode.
    """
    if message is None:
        return None
    buffers = [buffer.inline or b"" for buffer in message.buffers]
    return decode(Payload(int(message.encoding), message.data, buffers), what=what, limit=limit)


def decode(payload: Payload | None, *, what: str, limit: int) -> Any:
    """The value of a payload that was read without the library's objects; None when there is none.

    Raises:
        InvalidPayload: It does not decode.
    """
    return None if payload is None else codec.decode(payload, what=what, limit=limit)
