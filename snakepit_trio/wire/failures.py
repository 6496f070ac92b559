"""Failures as they travel: exceptions to :class:`~snakepit_trio.wire.frames.ErrorInfo` and back."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from snakepit_trio.errors import (
    GRPC_STATUS,
    MAX_REMOTE_TYPES,
    SnakepitError,
    ToolError,
    class_for_code,
    qualified_name,
    tool_error,
)

from . import codec
from .frames import ErrorInfo, Payload

__all__ = ["describe_exception", "error_from_status", "from_info", "grpc_status", "to_info"]

#: Modules whose frames say nothing when they stand above an adapter's: the worker, and what imports.
_NOT_THE_TOOL = ("snakepit_trio.worker.", "importlib", "_frozen_importlib")
MESSAGE_LIMIT = 8 * 1024
TRACEBACK_LIMIT = 64 * 1024


def to_info(error: SnakepitError) -> ErrorInfo:
    """How one of the library's own errors travels. Details that can't travel are left out."""
    info = ErrorInfo(error.code, _cut(error.message, MESSAGE_LIMIT), error.retryable, details=_details(error.details))
    if isinstance(error, ToolError):
        info.remote_types = error.remote_types
        info.remote_message = _cut(error.remote_message, MESSAGE_LIMIT)
        info.remote_traceback = _cut(error.remote_traceback, TRACEBACK_LIMIT)
    return info


def from_info(info: ErrorInfo, *, redact: Callable[[str], str] = str) -> SnakepitError:
    """The exception to raise on this side; ``redact`` takes out of its text what this side calls a secret."""
    details: dict[str, Any] = {}
    if info.details is not None:
        try:
            found = codec.decode(info.details, what="details")
        except SnakepitError:
            found = None
        if isinstance(found, dict):
            details = found
    if info.code == ToolError.default_code:
        return tool_error(
            tuple(info.remote_types),
            redact(info.remote_message),
            redact(info.remote_traceback),
            details=details,
            retryable=info.retryable,
        )
    return class_for_code(info.code)(redact(info.message), code=info.code, details=details, retryable=info.retryable)


def describe_exception(exc: BaseException, *, redact: Callable[[str], str]) -> ErrorInfo:
    """How an exception travels that a tool raised.

    The library's own errors keep their code, whoever raised them; any other becomes a ``tool_error`` with the names of
    its classes, its message and its traceback, all without secrets.
    """
    if isinstance(exc, SnakepitError) and not isinstance(exc, ToolError):
        info = to_info(exc)
        info.message = redact(info.message)
        return info
    try:
        message = str(exc)
    except Exception as broken:
        message = f"<str() of it raised {type(broken).__name__}>"
    try:
        lines = traceback.format_exception(type(exc), exc, _own_frames(exc))
        trace = "".join(lines)
    except Exception as broken:
        trace = f"<formatting it raised {type(broken).__name__}>"
    if isinstance(exc, ToolError) and exc.remote_types:
        # One that came from another process, and goes on: it is still caught by the types that it had there.
        names, message = list(exc.remote_types), exc.remote_message
        trace = f"{exc.remote_traceback}\nThe above exception was raised again here:\n\n{trace}"
    else:
        names = [qualified_name(cls) for cls in type(exc).__mro__ if cls is not object]
    return ErrorInfo(
        ToolError.default_code,
        "",
        False,
        names[:MAX_REMOTE_TYPES],
        _cut(redact(_clean(message)), MESSAGE_LIMIT),
        _cut(redact(_clean(trace)), TRACEBACK_LIMIT),
    )


def grpc_status(code: str) -> int:
    """The gRPC status for an error code; INTERNAL for one that is not known."""
    return GRPC_STATUS.get(code, GRPC_STATUS["internal"])


def error_from_status(status: int, message: str, code: str = "") -> SnakepitError:
    """The exception for a gRPC status, by the error code when the peer gave one."""
    if not code:
        code = next((name for name, number in GRPC_STATUS.items() if number == status), "internal")
    return class_for_code(code)(message, code=code)


def _details(details: dict[str, Any]) -> Payload | None:
    kept: dict[str, Any] = {}
    for key, value in details.items():
        try:
            codec.encode(value, limit=MESSAGE_LIMIT)
        except SnakepitError:
            continue
        kept[key] = value
    return codec.encode(kept) if kept else None


def _own_frames(exc: BaseException) -> Any:
    """The traceback without the library's frames above the tool's, nor the import machinery's above an adapter's."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_NOT_THE_TOOL):
        trace = trace.tb_next
    # A module that is missing or does not parse has no frame of its own, and its message says where.
    return trace if trace is not None or isinstance(exc, ImportError | SyntaxError) else exc.__traceback__


def _clean(text: str) -> str:
    """Text that has a UTF-8 form."""
    return text.encode(errors="backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = (limit - 40) // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
