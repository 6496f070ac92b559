"""Failures as gRPC statuses: the trailers of an RPC that failed, and back to exceptions.

``grpc-status-details-bin`` holds a ``google.rpc.Status``, whose details say the same three times over, each for whom it
may help: a ``snakepit.v1.ErrorInfo`` has everything, for our own client; ``google.rpc.ErrorInfo``, ``BadRequest`` and
``RetryInfo`` are what tools of other makers look for. They are so few and flat that they are written here by hand:
https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from snakepit_trio._timeouts import NEVER
from snakepit_trio.errors import ConnectionLost, QueueFull, SnakepitError, ToolError

from . import failures
from .frame_reading import decode_error, read_fields
from .frame_writing import encode_error, varint
from .frames import ErrorInfo, FrameError

__all__ = ["DEFAULT_ROOM", "OK", "error_from_trailers", "find_info", "trailers_for"]

OK = 0
_UNAVAILABLE = 14
#: Bytes of trailers that every client takes.
DEFAULT_ROOM = 6 * 1024
_TYPE = "type.googleapis.com/"
_OURS = _TYPE + "snakepit.v1.ErrorInfo"
_PLAIN_INFO = "snakepit-error-bin"
_DOMAIN = "snakepit"
#: When to come again after a full queue, in seconds.
_FULL = 0.1
#: Characters of the plain message.
_MESSAGE = 1024
#: What stands for itself in ``grpc-message``, beside letters and digits.
_PLAIN = " !\"#$&'()*+,/:;<=>?@[\\]^_`{|}~"


def trailers_for(error: SnakepitError, *, room: int = DEFAULT_ROOM) -> list[tuple[str, str]]:
    """The trailers of an RPC that ended with this error.

    Args:
        error: What went wrong; its text is sent as it is.
        room: Bytes that they may have in all; the traceback is cut first, then the details.
    """
    status = failures.grpc_status(error.code)
    message = error.message[:_MESSAGE]
    trailers = [("grpc-status", str(status)), ("grpc-message", quote(message, safe=_PLAIN, errors="replace"))]
    retry_after = _retry_after(error)
    if retry_after is not None:
        trailers.append(("grpc-retry-pushback-ms", str(int(retry_after * 1000))))
    left = (room - sum(len(name) + len(value) + 32 for name, value in trailers) - 64) * 3 // 4
    info = failures.to_info(error)
    others = _others(error, retry_after)
    for shorten in (_nothing, _short_trace, _no_trace, _no_details):
        shorten(info)
        details = _status(status, message, [(_OURS, encode_error(info)), *others])
        if len(details) <= left:
            trailers.append(("grpc-status-details-bin", base64.b64encode(details).decode().rstrip("=")))
            break
    return trailers


def error_from_trailers(trailers: Mapping[str, str], status: int, message: str) -> SnakepitError:
    """The exception for an RPC that did not end with OK."""
    info = find_info(trailers)
    if info is not None:
        return failures.from_info(info)
    if status == _UNAVAILABLE:
        return ConnectionLost(message)
    return failures.error_from_status(status, message)


def find_info(trailers: Mapping[str, str]) -> ErrorInfo | None:
    """What trailers tell of a failure in our own words: inside of ``grpc-status-details-bin``, or, for peers whose library
    has no ``google.rpc.Status``, as the value of ``snakepit-error-bin``."""
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
    except (FrameError, TypeError, AttributeError, binascii.Error):
        pass  # Whatever it is, it is not ours.
    return None


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


def _nothing(info: ErrorInfo) -> None:
    """The first attempt: everything."""


def _short_trace(info: ErrorInfo) -> None:
    # What raised is at the end of a traceback.
    info.remote_traceback = info.remote_traceback[-1500:]
    info.message, info.remote_message = info.message[:_MESSAGE], info.remote_message[:_MESSAGE]


def _no_trace(info: ErrorInfo) -> None:
    info.remote_traceback = ""


def _no_details(info: ErrorInfo) -> None:
    info.details = None
    info.remote_types = list(info.remote_types)[:8]


def _retry_after(error: SnakepitError) -> float | None:
    """Seconds after which another attempt makes sense; None when that is not known."""
    if error.code == QueueFull.default_code:
        return _FULL
    found = error.details.get("retry_after") if error.retryable else None
    return found if isinstance(found, int | float) and 0 < found < NEVER else None


def _others(error: SnakepitError, retry_after: float | None) -> list[tuple[str, bytes]]:
    found = [(_TYPE + "google.rpc.ErrorInfo", _google_error_info(error))]
    path = error.details.get("path")
    if isinstance(path, str):
        violation = _field(1, path.encode()[:500]) + _field(2, error.message.encode()[:500])
        found.append((_TYPE + "google.rpc.BadRequest", _field(1, violation)))
    if retry_after is not None:
        seconds, fraction = divmod(retry_after, 1.0)
        duration = b"\x08" + varint(int(seconds)) + b"\x10" + varint(int(fraction * 1e9))
        found.append((_TYPE + "google.rpc.RetryInfo", _field(1, duration)))
    return found


def _google_error_info(error: SnakepitError) -> bytes:
    metadata: dict[str, str] = {"retryable": "true" if error.retryable else "false"}
    if isinstance(error, ToolError) and error.remote_type:
        metadata["remote_type"] = error.remote_type[:200]
    for key, value in error.details.items():
        if isinstance(value, str | int | float) and len(text := str(value)) <= 200:
            metadata[key] = text
    entries = (_field(3, _field(1, key.encode()) + _field(2, value.encode())) for key, value in metadata.items())
    return _field(1, error.code.upper().encode()) + _field(2, _DOMAIN.encode()) + b"".join(entries)


def _status(code: int, message: str, details: Sequence[tuple[str, bytes]]) -> bytes:
    wrapped = (_field(3, _field(1, kind.encode()) + _field(2, data)) for kind, data in details)
    return b"\x08" + varint(code) + _field(2, message.encode(errors="replace")) + b"".join(wrapped)


def _field(number: int, data: bytes) -> bytes:
    return b"%b%b%b" % (varint(number << 3 | 2), varint(len(data)), data)
