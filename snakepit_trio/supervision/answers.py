"""Decoding of a plain RPC's answers: payloads, and errors by their gRPC status.

A worker may send more than a status in an ``ErrorInfo`` in its trailers; see :mod:`snakepit_trio.wire.status`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from snakepit_trio.wire.frames import ErrorInfo, Payload
from snakepit_trio.wire.status import find_info
from snakepit_trio.wire.tool_messages import PayloadAnswer

__all__ = ["DEADLINE_EXCEEDED", "error_info", "read_response"]

DEADLINE_EXCEEDED = 4
_UNAVAILABLE = 14
#: Names of the statuses, https://grpc.io/docs/guides/status-codes/, and the code of the error that each stands for;
#: None: the tool has failed.
_STATUSES: Mapping[int, tuple[str, str | None]] = {
    1: ("CANCELLED", "request_cancelled"),
    2: ("UNKNOWN", None),
    3: ("INVALID_ARGUMENT", "invalid_parameter"),
    4: ("DEADLINE_EXCEEDED", "request_timeout"),
    5: ("NOT_FOUND", "tool_not_found"),
    6: ("ALREADY_EXISTS", None),
    7: ("PERMISSION_DENIED", None),
    8: ("RESOURCE_EXHAUSTED", None),
    9: ("FAILED_PRECONDITION", None),
    10: ("ABORTED", None),
    11: ("OUT_OF_RANGE", None),
    12: ("UNIMPLEMENTED", "streaming_unsupported"),
    13: ("INTERNAL", None),
    14: ("UNAVAILABLE", None),
    15: ("DATA_LOSS", None),
    16: ("UNAUTHENTICATED", "authentication_failed"),
}
#: The codes that describe the RPC itself; such an error is the worker's, not the host's.
_OF_THE_RPC = frozenset({"authentication_failed", "request_cancelled", "request_timeout"})
#: The text that libraries put before the text of an exception that left a handler.
_RAISED = re.compile(
    r"(?:Exception (?:calling application|iterating responses): "
    r"|Unexpected <class '(?P<type>[\w.]+)'>: "
    r"|Server method handler threw error )(?P<text>.*)",
    re.DOTALL,
)


def read_response(message: bytes) -> Payload:
    """Return the payload of an ExecuteResponse.

    Raises:
        ValueError: The message is malformed.
    """
    try:
        payload = PayloadAnswer.parse(message).payload
    except ValueError as exc:
        raise ValueError(f"the worker's answer is no ExecuteResponse: {exc}") from exc
    if payload is None:
        raise ValueError("the worker's answer has no payload")
    return payload


def error_info(status: int, message: str, trailers: Mapping[str, str], redact: Callable[[str], str]) -> ErrorInfo:
    """Return the error of a status, or of the trailers if they contain one."""
    found = find_info(trailers)
    if found is not None and found.code:
        return found
    name, code = _STATUSES.get(status, (f"status {status}", None))
    if code is not None:
        return ErrorInfo(code, redact(message), remote_types=[f"grpc.{name}"] if code in _OF_THE_RPC else [])
    raised = _RAISED.fullmatch(message)
    if raised is None:
        return ErrorInfo("tool_error", "", status == _UNAVAILABLE, [f"grpc.{name}"], redact(message))
    kind = raised["type"]
    types = [] if kind is None else [kind if "." in kind else f"builtins.{kind}"]
    return ErrorInfo("tool_error", "", False, types, redact(raised["text"]))
