"""Conversion between exceptions and :class:`~snakepit_trio.wire.frames.ErrorInfo`.

There is one way for all exceptions, and nothing on it raises: text and attributes are read with care
(:mod:`snakepit_trio._exceptions`), and an ErrorInfo created here is bounded and can be encoded.

``remote_types`` is present exactly if a tool raised. So a tool's exception is never taken for the library's own
statement about a request.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from snakepit_trio._exceptions import (
    attempt,
    class_names,
    clean,
    display_name,
    exact_text,
    is_a,
    leaves_of,
    qualified_name,
    sound_name,
    text_of,
    traceback_of,
)
from snakepit_trio.errors import (
    GRPC_STATUS,
    MAX_REMOTE_TYPES,
    RemoteTraceback,
    SnakepitError,
    ToolError,
    class_for_code,
    tool_error,
)

from . import codec
from .frames import ErrorInfo, Leaf, Payload

__all__ = [
    "describe_exception",
    "details_of",
    "error_from_status",
    "from_info",
    "from_reply",
    "grpc_status",
    "message_of",
    "status_of",
    "to_info",
]

#: Modules whose frames above a tool's are omitted: the runner and the import system.
_NOT_THE_TOOL = ("snakepit_trio.worker.", "snakepit_trio.tools.", "importlib", "_frozen_importlib")
#: The largest sizes in bytes; together with the other parts less than ``frames.FRAME_OVERHEAD``.
MESSAGE_LIMIT = 8 * 1024
TRACEBACK_LIMIT = 48 * 1024
DETAILS_LIMIT = 16 * 1024
_TYPES_LIMIT = 8 * 1024
_CODE_LIMIT = 64
_KEY_LIMIT = 200
_LEAF_MESSAGE_LIMIT = _LEAF_TYPES_LIMIT = 1024
#: The number of transmitted details, of leaves of a group, and of classes of each leaf.
_MOST_DETAILS, _MOST_LEAVES, _MOST_LEAF_TYPES = 256, 8, 8
#: The part of a text that is read before redaction.
_LONGEST = 60 * 1024

#: Statuses that describe the request. The others describe the RPC, or say that it may be sent again.
_OF_THE_REQUEST = frozenset({3, 5, 6, 9, 12})
_UNKNOWN = 2
#: The code of a status without one, where the first code of that status would say that the call has not run.
_WITHOUT_CODE = {8: "quota_exceeded", 14: "connection_lost"}

#: The codes that a worker itself may report about a call; any other error was raised by the tool.
_OF_A_WORKER = frozenset(
    {
        "invalid_parameter",
        "invalid_payload",
        "request_cancelled",
        "request_timeout",
        "streaming_unsupported",
        "tool_not_found",
    }
)

Redact = Callable[[str], str]


def to_info(
    error: SnakepitError, *, redact: Redact = str, redact_details: Callable[[Any], Any] | None = None
) -> ErrorInfo:
    """Convert an error of the library itself, or one that is passed on. Never raises.

    Args:
        error: The error. Details that can't be sent are omitted.
        redact: Removes secrets from its text.
        redact_details: Removes secrets from its details.
    """
    info = _describe(error, redact)
    if redact_details is not None and info.details is not None:
        info.details = _pack(redact_details(details_of(info)).items())
    if is_a(error, ToolError):
        info.remote_types = _names(error)
        info.remote_message = _text(attempt(None, getattr, error, "remote_message"), MESSAGE_LIMIT, redact)
        info.remote_traceback = _text(attempt(None, getattr, error, "remote_traceback"), TRACEBACK_LIMIT, redact)
        info.leaves = [_leaf(leaf, redact) for leaf in _leaves(error)]
    return info


def describe_exception(exc: BaseException, *, redact: Redact) -> ErrorInfo:
    """Convert an exception of a tool, with the names of its classes and of its leaves' classes, its message and its
    traceback, all redacted. The library's own errors keep their code and details. Never raises.
    """
    trace = _text(traceback_of(exc, _LONGEST, hidden=_NOT_THE_TOOL), TRACEBACK_LIMIT, redact)
    if not is_a(exc, SnakepitError):
        info = ErrorInfo(ToolError.default_code, remote_message=_text(text_of(exc, _LONGEST), MESSAGE_LIMIT, redact))
    elif is_a(exc, ToolError) and _remote_names(exc):
        # An error from another process is still caught by the types that it had there.
        info = to_info(exc, redact=redact)  # type: ignore[arg-type]
        again = "The above exception was raised again here"
        if not is_a(attempt(exc, getattr, exc, "__cause__") or exc, RemoteTraceback):
            trace = f"{info.remote_traceback}\n{again}:\n\n{trace}"
        info.remote_traceback = clean(trace, TRACEBACK_LIMIT)
        return info
    else:
        info = _describe(exc, redact)
        info.remote_message = info.message
    leaves, _ = leaves_of(exc)
    info.remote_traceback = trace
    info.remote_types = _bounded(_with_leaves(exc, leaves))
    info.leaves = [_leaf(leaf, redact) for leaf in leaves[:_MOST_LEAVES]]
    return info


def from_info(info: ErrorInfo, *, redact: Redact = str) -> SnakepitError:
    """Return the exception for an ErrorInfo; ``redact`` removes this side's secrets from its text. Never raises."""
    code = _sound_code(info.code, "internal")
    details, message = details_of(info), redact(info.message)
    if not info.remote_types and code != ToolError.default_code:
        return class_for_code(code)(message, code=code, details=details, retryable=info.retryable)
    return tool_error(
        _sound(info.remote_types, MAX_REMOTE_TYPES),
        redact(info.remote_message) or message,
        redact(info.remote_traceback),
        code=code,
        message="" if code == ToolError.default_code else message,
        details=details,
        retryable=info.retryable,
        leaves=tuple(
            tool_error(_sound(leaf.types, _MOST_LEAF_TYPES), redact(leaf.message), "")
            for leaf in info.leaves[:_MOST_LEAVES]
        ),
    )


def from_reply(info: ErrorInfo, *, redact: Redact = str) -> SnakepitError:
    """Return the exception for a worker's answer: :func:`from_info`, but an error with a code that a worker can't report
    is the tool's.
    """
    if not info.remote_types and info.code != ToolError.default_code and info.code not in _OF_A_WORKER:
        info.remote_types = class_names(class_for_code(_sound_code(info.code, "internal"))())
    return from_info(info, redact=redact)


def message_of(info: ErrorInfo) -> str:
    """Return the message of an ErrorInfo."""
    if info.message:
        return info.message
    shown = display_name(info.remote_types[0]) if info.remote_types else "Exception"
    return f"{shown}: {info.remote_message}" if info.remote_message else shown


def grpc_status(code: str) -> int:
    """Return the gRPC status of an error code; INTERNAL for an unknown one."""
    return GRPC_STATUS.get(code, GRPC_STATUS["internal"])


def status_of(info: ErrorInfo) -> int:
    """Return the gRPC status of an RPC that ends with this error: a tool's error never gets a status that asks for a
    retry.
    """
    status = grpc_status(info.code)
    return _UNKNOWN if info.remote_types and status not in _OF_THE_REQUEST else status


def error_from_status(status: int, message: str, code: str = "") -> SnakepitError:
    """Return the exception of a gRPC status, by the error code if the peer sent one."""
    if not code:
        code = _WITHOUT_CODE.get(status) or next(
            (name for name, number in GRPC_STATUS.items() if number == status), "internal"
        )
    return class_for_code(code)(message, code=code)


# ---- what an exception says of itself ------------------------------------------------------------


def _describe(exc: BaseException, redact: Redact) -> ErrorInfo:
    """Convert an error of the library's classes."""
    error: Any = exc
    default = exact_text(attempt(None, getattr, error, "default_code")) or "internal"
    message = exact_text(attempt(None, getattr, error, "message"))
    return ErrorInfo(
        _sound_code(attempt(None, getattr, error, "code"), _sound_code(default, "internal")),
        _text(text_of(exc, _LONGEST) if message is None else message, MESSAGE_LIMIT, redact),
        attempt(False, bool, attempt(False, getattr, error, "retryable")),
        details=_pack(_details(attempt(None, getattr, error, "details"))),
    )


def _text(text: object, limit: int, redact: Redact) -> str:
    # Redacted before truncation, because half a secret is not recognised.
    return clean(redact(clean(exact_text(text) or "", _LONGEST)), limit)


def _sound_code(code: object, default: str) -> str:
    text = exact_text(code)
    return clean(text, _CODE_LIMIT) if text and len(text) <= _CODE_LIMIT else default


def _details(details: object) -> Iterator[tuple[str, Any]]:
    """Yield the details that can be read, with string keys."""
    items: list[tuple[Any, Any]] = attempt([], _items, details)
    for key, value in items:
        name = exact_text(key)
        if name is None:
            name = attempt(qualified_name(type(key)), _as_text, key)
        text = exact_text(value)
        yield clean(name, _KEY_LIMIT), value if text is None else clean(text, MESSAGE_LIMIT)


def _items(details: Any) -> list[tuple[Any, Any]]:
    items = dict.items(details) if issubclass(type(details), dict) else details.items()
    return list(itertools.islice(items, _MOST_DETAILS))


def _as_text(key: object) -> str:
    return str.__str__(str(key))


def _pack(details: Iterable[tuple[str, Any]]) -> Payload | None:
    """Encode details as a payload; those that can't be sent, or exceed the limits, are omitted."""
    kept: dict[str, Any] = {}
    room = DETAILS_LIMIT
    for key, value in details:
        size = attempt(DETAILS_LIMIT + 1, _size, key, value)
        if size <= room:
            kept[key] = value
            room -= size
    return attempt(None, codec.encode, kept) if kept else None


def _size(key: str, value: Any) -> int:
    return len(codec.encode({key: value}, limit=DETAILS_LIMIT).data)


def details_of(info: ErrorInfo) -> dict[str, Any]:
    """Return an error's details; empty if they are not a map with string keys."""
    found = None if info.details is None else attempt(None, _unpack, info.details)
    if type(found) is not dict:
        return {}
    return {key: value for key, value in found.items() if type(key) is str}


def _unpack(payload: Payload) -> Any:
    return codec.decode(payload, what="details")


def _remote_names(exc: BaseException) -> list[str]:
    """Return the types that an error had where it came from."""
    given: Any = attempt((), getattr, exc, "remote_types")
    if type(given) not in (tuple, list):
        return []
    return [sound_name(name) for name in map(exact_text, given[:MAX_REMOTE_TYPES]) if name]


def _names(exc: BaseException) -> list[str]:
    """Return the names of an exception's classes; for an error from another process, those that it had there."""
    remote = _remote_names(exc) if is_a(exc, ToolError) else []
    return remote or class_names(exc)


def _with_leaves(exc: BaseException, leaves: list[BaseException]) -> Iterator[str]:
    """Yield the names of an exception's classes, then of its leaves' classes, then of their bases."""
    yield from _names(exc)
    names = [_names(leaf) for leaf in leaves]
    yield from (own[0] for own in names)
    yield from itertools.chain.from_iterable(names)


def _bounded(names: Iterable[str], most: int = MAX_REMOTE_TYPES, room: int = _TYPES_LIMIT) -> list[str]:
    """Return the first distinct names, within a number and a total size."""
    found: dict[str, None] = {}
    for name in names:
        if name in found:
            continue
        room -= len(name.encode())
        if room < 0 or len(found) == most:
            break
        found[name] = None
    return list(found)


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the leaves of an error from another process."""
    given: Any = attempt((), getattr, error, "leaves")
    return [leaf for leaf in given[:_MOST_LEAVES] if is_a(leaf, ToolError)] if type(given) is tuple else []


def _leaf(exc: BaseException, redact: Redact) -> Leaf:
    remote = exact_text(attempt(None, getattr, exc, "remote_message")) if is_a(exc, ToolError) else None
    text = text_of(exc, _LONGEST) if remote is None else remote
    return Leaf(_bounded(_names(exc), _MOST_LEAF_TYPES, _LEAF_TYPES_LIMIT), _text(text, _LEAF_MESSAGE_LIMIT, redact))


def _sound(names: Iterable[str], most: int) -> tuple[str, ...]:
    return tuple(sound_name(name) for name in itertools.islice(names, most))
