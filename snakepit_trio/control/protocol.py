"""The protocol of a control socket: one line of JSON for each request and each answer.

::

    -> {"v": 1, "id": 7, "op": "status", "params": {"tree": true}} <- {"v": 1, "id": 7, "ok": true, "result": {...}} <-
    {"v": 1, "id": 7, "ok": false, "error": {"code": "invalid_parameter", "message": "..."}}

The client chooses ``id``, and the answer repeats it. ``events`` is answered by ``{"ok": true, "result": {}}`` and then
by any number of ``{"v": 1, "id": 7, "event": {...}, "dropped": 0}``, until the client closes its side or sends
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from snakepit_trio.observe.printable import encoded

__all__ = [
    "ANSWER_LIMIT",
    "REQUEST_LIMIT",
    "VERSION",
    "Refusal",
    "Request",
    "event_line",
    "failure",
    "parse",
    "success",
]

#: The version of the protocol.
VERSION = 1
#: The largest request and the largest answer, in bytes.
REQUEST_LIMIT = 64 * 1024
ANSWER_LIMIT = 64 * 1024 * 1024


class Refusal(Exception):
    """A refused request.

    Attributes:
        code: A code for programs, such as ``"invalid_parameter"``.
        message: A message for people.
    """

    def __init__(self, code: str, message: str, id: int | str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id


class Request(msgspec.Struct):
    """One request; the client chooses ``id``."""

    v: int
    op: str
    id: int | str | None = None
    params: dict[str, Any] = {}


def parse(line: bytes) -> Request:
    """Decode a request.

    Raises:
        Refusal: The line is malformed, or of another version.
    """
    try:
        request = msgspec.json.decode(line, type=Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Refusal("bad_request", f"not a request: {exc}") from None
    if request.v != VERSION:
        raise Refusal("protocol_mismatch", f"the client speaks version {request.v}, this runtime {VERSION}", request.id)
    return request


def success(id: int | str | None, result: Mapping[str, Any]) -> bytes:
    """Encode a result as a line. A number that JSON can't represent (nan, inf) becomes null."""
    line = encoded({"v": VERSION, "id": id, "ok": True, "result": result}, str) + b"\n"
    if len(line) > ANSWER_LIMIT:
        return failure(id, "too_large", f"the answer has {len(line)} bytes; the limit is {ANSWER_LIMIT}")
    return line


def failure(id: int | str | None, code: str, message: str) -> bytes:
    """Encode a refusal as a line."""
    error = {"code": code, "message": message}
    return encoded({"v": VERSION, "id": id, "ok": False, "error": error}, str) + b"\n"


def event_line(id: int | str | None, event: Mapping[str, Any], dropped: int) -> bytes:
    """Encode an event as a line; ``dropped`` counts the events lost since the subscription because they were not read."""
    return encoded({"v": VERSION, "id": id, "event": event, "dropped": dropped}, str) + b"\n"
