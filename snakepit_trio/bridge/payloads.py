"""Conversion between payloads of the bridge's messages and values, also in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snakepit_trio.errors import InvalidParameter, InvalidPayload
from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import JSON, MSGPACK, Payload, SharedBlock
from snakepit_trio.wire.generated.snakepit.v1 import Payload as PayloadMessage
from snakepit_trio.wire.payload_messages import message_of, payload_of

__all__ = [
    "check_encoding",
    "encode",
    "in_encoding",
    "may_stay_unread",
    "packed",
    "params_of",
    "read",
    "write",
]

#: Larger arguments go to the worker without being decoded here: they may be millions of values, or megabytes to copy, and
#: decoding would block the event loop.
_READ = 256 * 1024


def read(message: PayloadMessage | None, *, what: str, limit: int) -> Any:
    """Return the value of a payload.

    Raises:
        InvalidPayload: It is missing or malformed, or refers to shared memory, which no client has.
    """
    if message is None:
        raise InvalidPayload(f"{what} is missing", details={"path": what})
    return _decode(payload_of(message, SharedBlock("", 0, 0)), what=what, limit=limit)


def may_stay_unread(payload: Payload | None, *, limit: int) -> bool:
    """Return whether arguments are too large to be decoded here, so that only the worker checks them.

    Raises:
        InvalidPayload: They are larger than the limit, or refer to shared memory.
    """
    if payload is None or (payload.size if payload.buffers else len(payload.data)) <= _READ:
        return False
    _check_buffers(payload, "payload")
    codec.check_size(payload, what="payload", limit=limit)
    return True


def _check_buffers(payload: Payload, what: str) -> None:
    for index, buffer in enumerate(payload.buffers):
        if isinstance(buffer, SharedBlock):
            path = f"{what}.buffers[{index}]"
            raise InvalidPayload(f"{path} has no inline bytes", details={"path": path})


def _decode(payload: Payload, *, what: str, limit: int) -> Any:
    _check_buffers(payload, what)
    try:
        return codec.decode(payload, what=what, limit=limit)
    except InvalidPayload as exc:
        exc.details["path"] = what
        raise


def params_of(payload: Payload | None, *, limit: int) -> Mapping[str, Any]:
    """Return a tool's arguments.

    Raises:
        InvalidPayload: The payload is malformed.
        InvalidParameter: The payload is not a map of names to values.
    """
    if payload is None or (not payload.data and payload.encoding == 0 and not payload.buffers):
        return {}
    value = _decode(payload, what="payload", limit=limit)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidParameter(
            f"payload must be a map of argument names to values, not {type(value).__name__}",
            details={"path": "payload"},
        )
    return value


def check_encoding(accept: int, given: Payload | None) -> int:
    """Return the encoding of an answer: the requested one, else that of the request, else JSON.

    Raises:
        InvalidParameter: There is no such encoding.
    """
    chosen = int(accept) or (given.encoding if given is not None else 0) or JSON
    if chosen not in (JSON, MSGPACK):
        raise InvalidParameter(f"accept: the encoding {chosen} is not known", details={"path": "accept"})
    return chosen


def encode(value: Any, encoding: int, *, what: str, limit: int) -> Payload:
    """Encode a value as a payload. For JSON, tuples become arrays; nothing else is converted.

    Raises:
        InvalidPayload: The encoding can't represent the value; the path names the place.
    """
    try:
        return codec.encode(_arrays(value) if encoding == JSON else value, what=what, limit=limit, encoding=encoding)
    except InvalidParameter as exc:
        hint = "; ask for it in MSGPACK (accept)" if encoding == JSON else ""
        raise InvalidPayload(f"{exc.message}{hint}", details=exc.details) from None


def in_encoding(payload: Payload | None, encoding: int, *, what: str = "result", limit: int) -> Payload:
    """Return a worker's result, or a stored value, in the encoding that a client wants, unchanged if it has that encoding.

    Raises:
        InvalidPayload: It is malformed, too large, or the encoding can't represent it.
    """
    if payload is not None and payload.encoding == encoding:
        codec.check_size(payload, what=what, limit=limit)
        return payload
    value = None if payload is None else codec.decode(payload, what=what, limit=limit)
    return encode(value, encoding, what=what, limit=limit)


def packed(message: PayloadMessage | None, *, limit: int) -> bytes | None:
    """Return the bytes of a large value that may be stored as it came: MessagePack without buffers. None for any other
    value.

    The reader of the value checks its extension types.

    Raises:
        InvalidPayload: It is larger than the limit, or not MessagePack.
    """
    if message is None or int(message.encoding) != MSGPACK or message.buffers or len(message.data) <= _READ:
        return None
    codec.check_shape(Payload(MSGPACK, message.data), what="payload", limit=limit)
    return message.data


def write(value: Any, encoding: int, *, what: str, limit: int) -> PayloadMessage:
    """Return a value as a message of the library."""
    return message_of(encode(value, encoding, what=what, limit=limit))


def _arrays(value: Any, depth: int = 0) -> Any:
    if depth > 100:
        return value  # The codec refuses it, and names the place.
    if type(value) is tuple or type(value) is list:
        return [_arrays(item, depth + 1) for item in value]
    if type(value) is dict:
        return {key: _arrays(item, depth + 1) for key, item in value.items()}
    return value
