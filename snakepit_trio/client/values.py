"""Values in the bridge's messages on the client's side; always MSGPACK, so that they arrive exactly."""

from __future__ import annotations

from typing import Any

from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import Payload
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.payload_messages import message_of, payload_of

__all__ = ["decode", "pack", "unpack"]


def pack(value: Any, *, what: str, limit: int) -> v1.Payload:
    """Encode a value as a payload.

    Raises:
        InvalidParameter: The value contains something that can't be sent; ``details["path"]`` is its place.
    """
    return message_of(codec.encode(value, what=what, limit=limit))


def unpack(message: v1.Payload | None, *, what: str, limit: int) -> Any:
    """Decode the value of a payload message.

    Raises:
        InvalidPayload: The payload is malformed.
    """
    return None if message is None else decode(payload_of(message), what=what, limit=limit)


def decode(payload: Payload | None, *, what: str, limit: int) -> Any:
    """Decode the value of a payload that was read without the message library; None for no payload.

    Raises:
        InvalidPayload: The payload is malformed.
    """
    return None if payload is None else codec.decode(payload, what=what, limit=limit)
