"""The methods of a bridge, and the form of timeouts and errors on the wire."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import attrs

from snakepit_trio.errors import SnakepitError
from snakepit_trio.observe.redaction import Redactor
from snakepit_trio.wire import failures, status

if TYPE_CHECKING:
    from .server_call import ServerCall

__all__ = ["Method", "Unimplemented", "error_trailers", "read_timeout"]

_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Unimplemented(SnakepitError):
    """There is no such method."""

    default_code = "streaming_unsupported"


@attrs.frozen
class Method:
    """A served method.

    Attributes:
        handler: ``await handler(call, request)`` returns the answer. A streaming method sends and receives through the
            call; it returns nothing, and gets no request if the client streams.
        request: The class of the request message.
        begin: ``begin(call, request)`` begins the call without a task, if possible: it arranges that
            :meth:`ServerCall.conclude` is called, and returns a function that cancels the call. None: the handler must
            run.
        streams_in, streams_out: Whether the client, and the server, may send many messages.
        public: Whether no token is required.
        longest: The largest request message in bytes; None: the bridge's own limit.
    """

    handler: Callable[..., Awaitable[Any]]
    request: Any
    begin: Callable[[ServerCall, Any], Callable[[], None] | None] | None = None
    streams_in: bool = False
    streams_out: bool = False
    public: bool = False
    longest: int | None = None


def read_timeout(value: bytes) -> float:
    """Return the seconds of a ``grpc-timeout`` header.

    Raises:
        ValueError: The header is malformed.
    """
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise ValueError("grpc-timeout is not up to 8 digits and a unit")
    return int(found[1]) * _UNITS[found[2]]


def error_trailers(error: SnakepitError, redactor: Redactor, room: int = status.DEFAULT_ROOM) -> list[tuple[str, str]]:
    """Return the trailers of an error, without secrets."""
    info = failures.to_info(error, redact=redactor.text, redact_details=redactor.value)
    trailers = status.trailers_for(info, room=room)
    return [("grpc-status", "12"), trailers[1]] if isinstance(error, Unimplemented) else trailers
