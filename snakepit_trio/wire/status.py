"""Conversion between errors and the trailers of a failed RPC.

``grpc-status-details-bin`` holds a ``google.rpc.Status``, whose details contain the same error in several forms: a
``snakepit.v1.ErrorInfo`` with all fields, for this package's client; ``google.rpc.ErrorInfo``, ``BadRequest`` and
``RetryInfo`` for other tools. The latter are few and flat, so they are encoded by hand:
https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from snakepit_trio._exceptions import display_name
from snakepit_trio._timeouts import NEVER
from snakepit_trio.errors import ConnectionLost, QueueFull, SnakepitError

from . import failures
from .fields import read_fields
from .frame_reading import decode_error
from .frame_writing import encode_error, varint
from .frames import ErrorInfo, FrameError

__all__ = ["DEFAULT_ROOM", "OK", "encode_shortened", "error_from_trailers", "find_info", "trailers_for"]

OK = 0
_UNAVAILABLE = 14
#: The bytes of trailers that every client accepts.
DEFAULT_ROOM = 6 * 1024
_TYPE = "type.googleapis.com/"
_OURS = _TYPE + "snakepit.v1.ErrorInfo"
_PLAIN_INFO = "snakepit-error-bin"
_DOMAIN = "snakepit"
#: Seconds. The retry delay after a full queue.
_FULL = 0.1
#: The largest number of characters of the plain message.
_MESSAGE = 1024
#: The bytes of the enclosing length prefixes.
_SIZES = 16
#: The bytes of a class's name in the shortest trailers.
_BARE_TYPE = 100
#: The characters that are not escaped in ``grpc-message``, beside letters and digits.
_PLAIN = " !\"#$&'()*+,/:;<=>?@[\\]^_`{|}~"


def trailers_for(info: ErrorInfo, *, room: int = DEFAULT_ROOM) -> list[tuple[str, str]]:
    """Return the trailers of an RPC that ended with this error.

    Args:
        info: The error; its text is sent unchanged.
        room: The largest size in bytes, at least a kilobyte; the traceback is truncated first, then the details.
    """
    status = failures.status_of(info)
    details = failures.details_of(info)
    message = failures.message_of(info)[:_MESSAGE]
    trailers = [("grpc-status", str(status)), ("grpc-message", _quoted(message, room // 3))]
    retry_after = _retry_after(info, details)
    if retry_after is not None:
        trailers.append(("grpc-retry-pushback-ms", str(int(retry_after * 1000))))
    left = (room - sum(len(name) + len(value) + 32 for name, value in trailers) - 64) * 3 // 4
    others = _others(info, details, message, retry_after)
    told = encode_shortened(info, left - len(_status(status, message, [(_OURS, b""), *others])))
    if told is None:
        # The source and the code are always sent.
        message, others, told = "", [], encode_error(_bare(info))
    data = _status(status, message, [(_OURS, told), *others])
    trailers.append(("grpc-status-details-bin", base64.b64encode(data).decode().rstrip("=")))
    return trailers


def encode_shortened(info: ErrorInfo, room: int) -> bytes | None:
    """Encode an ErrorInfo message truncated to this many bytes; None if not even its texts fit."""
    told = msgspec.structs.replace(info)
    for shorten in (_nothing, _short_trace, _no_trace, _no_details):
        shorten(told)
        data = encode_error(told)
        if len(data) <= room - _SIZES:
            return data
    return None


def _quoted(message: str, limit: int) -> str:
    """Return a message escaped for ``grpc-message``, of at most this many bytes."""
    text = quote(message, safe=_PLAIN, errors="replace")
    while len(text) > limit:
        message = message[: len(message) * limit // len(text)]
        text = quote(message, safe=_PLAIN, errors="replace")
    return text


def error_from_trailers(trailers: Mapping[str, str], status: int, message: str) -> SnakepitError:
    """Return the exception for an RPC that did not end with OK."""
    info = find_info(trailers)
    if info is not None:
        info.message = info.message or info.remote_message or message
        return failures.from_info(info)
    if status == _UNAVAILABLE:
        return ConnectionLost(message)
    return failures.error_from_status(status, message)


def find_info(trailers: Mapping[str, str]) -> ErrorInfo | None:
    """Return the ErrorInfo in the trailers: inside ``grpc-status-details-bin`` or, from peers whose library lacks
    ``google.rpc.Status``, the value of ``snakepit-error-bin``.
    """
    try:
        if _PLAIN_INFO in trailers:
            return decode_error(_from_base64(trailers[_PLAIN_INFO]))
        data = _from_base64(trailers.get("grpc-status-details-bin", ""))
        for tag, value in read_fields(data, 0, len(data)):
            if tag == 0x1A and isinstance(value, bytes):
                fields = dict(read_fields(value, 0, len(value)))
                found = fields.get(0x12)
                if fields.get(0x0A) == _OURS.encode() and isinstance(found, bytes):
                    return decode_error(found)
    except (FrameError, TypeError, AttributeError, ValueError):
        pass  # It is not an ErrorInfo.
    return None


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


def _nothing(info: ErrorInfo) -> None:
    """The first attempt, without truncation."""


def _short_trace(info: ErrorInfo) -> None:
    # The end of a traceback shows the raising code.
    info.remote_traceback = info.remote_traceback[-1500:]
    info.message, info.remote_message = info.message[:_MESSAGE], info.remote_message[:_MESSAGE]


def _no_trace(info: ErrorInfo) -> None:
    info.remote_traceback = ""


def _no_details(info: ErrorInfo) -> None:
    info.details = None
    info.remote_types = list(info.remote_types)[:8]
    info.leaves = ()


def _bare(info: ErrorInfo) -> ErrorInfo:
    types = [name if len(name.encode()) <= _BARE_TYPE else "builtins.BaseException" for name in info.remote_types[:1]]
    return ErrorInfo(info.code, "", info.retryable, types)


def _retry_after(info: ErrorInfo, details: Mapping[str, Any]) -> float | None:
    """Return the seconds after which a retry makes sense; None if that is unknown, or only a tool says so."""
    if info.remote_types:
        return None
    if info.code == QueueFull.default_code:
        return _FULL
    found = details.get("retry_after") if info.retryable else None
    return found if isinstance(found, int | float) and 0 < found < NEVER else None


def _others(
    info: ErrorInfo, details: Mapping[str, Any], message: str, retry_after: float | None
) -> list[tuple[str, bytes]]:
    found = [(_TYPE + "google.rpc.ErrorInfo", _google_error_info(info, details))]
    path = details.get("path")
    if isinstance(path, str):
        violation = _field(1, _short(path)) + _field(2, _short(message))
        found.append((_TYPE + "google.rpc.BadRequest", _field(1, violation)))
    if retry_after is not None:
        seconds, fraction = divmod(retry_after, 1.0)
        duration = b"\x08" + varint(int(seconds)) + b"\x10" + varint(int(fraction * 1e9))
        found.append((_TYPE + "google.rpc.RetryInfo", _field(1, duration)))
    return found


def _google_error_info(info: ErrorInfo, details: Mapping[str, Any]) -> bytes:
    metadata: dict[str, str] = {"retryable": "true" if info.retryable else "false"}
    if info.remote_types:
        metadata["remote_type"] = display_name(info.remote_types[0])
    for key, value in details.items():
        if isinstance(value, int) and value.bit_length() > 64:
            continue  # Python writes no longer ones than it has been told to.
        if isinstance(value, str | int | float) and len(text := str(value)) <= 200:
            metadata[key] = text
    entries = (_field(3, _field(1, key.encode()) + _field(2, value.encode())) for key, value in metadata.items())
    return _field(1, info.code.upper().encode()) + _field(2, _DOMAIN.encode()) + b"".join(entries)


def _short(text: str) -> bytes:
    return text.encode()[:500].decode(errors="ignore").encode()


def _status(code: int, message: str, details: Sequence[tuple[str, bytes]]) -> bytes:
    wrapped = (_field(3, _field(1, kind.encode()) + _field(2, data)) for kind, data in details)
    return b"\x08" + varint(code) + _field(2, message.encode(errors="replace")) + b"".join(wrapped)


def _field(number: int, data: bytes) -> bytes:
    return b"%b%b%b" % (varint(number << 3 | 2), varint(len(data)), data)
