"""Values in the bridge's messages, as the client writes and reads them: always MSGPACK, so that they come back exact."""

from __future__ import annotations

from typing import Any

from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import Payload
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.payload_messages import message_of, payload_of

__all__ = ["decode", "pack", "unpack"]


def pack(value: Any, *, what: str, limit: int) -> v1.Payload:
    """A value as a payload.

    Raises:
        InvalidParameter: It, or something in it, can't travel; ``details["path"]`` says where it is.
    """
    return message_of(codec.encode(value, what=what, limit=limit))


def unpack(message: v1.Payload | None, *, what: str, limit: int) -> Any:
    """The value of a payload.

    Raises:
        InvalidPayload: It does not decode.
    """
    return None if message is None else decode(payload_of(message), what=what, limit=limit)


def decode(payload: Payload | None, *, what: str, limit: int) -> Any:
    """The value of a payload that was read without the library's objects; None when there is none.

    Raises:
        InvalidPayload: It does not decode.
    """
    return None if payload is None else codec.decode(payload, what=what, limit=limit)
