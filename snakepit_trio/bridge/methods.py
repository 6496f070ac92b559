"""What a bridge serves, and what its clients are told of time-outs and errors."""

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
    """A method that is served.

    Attributes:
        handler: ``await handler(call, request)``; what it returns is the answer. A method that streams in or out sends and
            receives by the call; it returns nothing, and gets no request when the client streams.
        request: The request's message class.
        begin: ``begin(call, request)`` begins the call without a task, if it can: it sees to it that
            :meth:`ServerCall.conclude` is called, and returns what cancels the call. None: the handler is to be run.
        streams_in, streams_out: Which side may send many messages.
        public: A token is not asked for.
        longest: Longest request message in bytes; None: the bridge's own limit.
    """

    handler: Callable[..., Awaitable[Any]]
    request: Any
    begin: Callable[[ServerCall, Any], Callable[[], None] | None] | None = None
    streams_in: bool = False
    streams_out: bool = False
    public: bool = False
    longest: int | None = None


def read_timeout(value: bytes) -> float:
    """Seconds of a ``grpc-timeout`` header.

    Raises:
        ValueError: It is none.
    """
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise ValueError("grpc-timeout is not up to 8 digits and a unit")
    return int(found[1]) * _UNITS[found[2]]


def error_trailers(error: SnakepitError, redactor: Redactor, room: int = status.DEFAULT_ROOM) -> list[tuple[str, str]]:
    """The trailers that tell a client of an error, without secrets."""
    info = failures.to_info(error, redact=redactor.text, redact_details=redactor.value)
    trailers = status.trailers_for(info, room=room)
    return [("grpc-status", "12"), trailers[1]] if isinstance(error, Unimplemented) else trailers
