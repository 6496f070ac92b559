"""What a caller may say of a call, to a pool here or to one elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

from snakepit_trio.errors import InvalidParameter

__all__ = [
    "UNSET",
    "CallOptions",
    "StreamOptions",
    "Unset",
    "check_limit",
    "check_metadata",
    "check_options",
    "check_params",
    "check_tool",
]

#: Metadata of one request: how many entries, and how many characters in all.
METADATA_ENTRIES = 64
METADATA_SIZE = 8192
#: As far as the wire carries it.
_MOST_PRIORITY = (1 << 31) - 1


class Unset:
    """The type of :data:`UNSET`."""

    def __repr__(self) -> str:
        return "the pool's own"


#: Stands for a limit that the caller did not give; the pool's configuration then decides.
UNSET: Final = Unset()


class StreamOptions(TypedDict, total=False):
    """The options of :meth:`snakepit_trio.Pool.stream`."""

    timeout: float | Unset | None
    priority: int
    metadata: Mapping[str, str] | None


class CallOptions(StreamOptions, total=False):
    """The options of :meth:`snakepit_trio.Pool.execute`."""

    idempotent: bool | None


def check_params(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """A call's arguments by name.

    Raises:
        InvalidParameter: They are no mapping.
    """
    if params is None:
        return {}
    if type(params) is dict:
        return params
    if not isinstance(params, Mapping):
        raise InvalidParameter(
            f"params must be a mapping of argument names to values, not {type(params).__name__}",
            details={"path": "params"},
        )
    return dict(params)


def check_options(
    priority: int, metadata: Mapping[str, str] | None, idempotent: bool | None = None
) -> dict[str, str] | None:
    """Refuse what these options of a call can't be.

    Returns:
        The metadata as it is now, whatever its owner makes of it later.

    Raises:
        InvalidParameter: One is of another type or out of range, or the metadata is too large.
    """
    if idempotent is not None and type(idempotent) is not bool:
        raise InvalidParameter(f"idempotent must be a bool or None, not {idempotent!r}", details={"path": "idempotent"})
    if type(priority) is not int:
        raise InvalidParameter(f"priority must be an int, not {priority!r}", details={"path": "priority"})
    if not -_MOST_PRIORITY <= priority <= _MOST_PRIORITY:
        # Not shown: it may have more digits than Python turns into text.
        raise InvalidParameter(
            f"priority must be from {-_MOST_PRIORITY} to {_MOST_PRIORITY}", details={"path": "priority"}
        )
    return check_metadata(metadata) if metadata else None


def check_tool(tool: str) -> None:
    """Refuse what can't be the name of a tool.

    Raises:
        InvalidParameter: It is no text, or none that can be sent.
    """
    if not isinstance(tool, str):
        raise InvalidParameter(f"the tool must be named by text, not {type(tool).__name__}", details={"path": "tool"})
    if not _sendable(tool):
        raise InvalidParameter(f"the tool's name {tool!r} has a lone surrogate", details={"path": "tool"})


def _sendable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_limit(limit: int | None) -> None:
    """Refuse what the limit of a map can't be.

    Raises:
        InvalidParameter: It is neither a positive int nor None.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidParameter(f"limit must be a positive int or None, not {limit!r}", details={"path": "limit"})


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a request, as it is now.

    Raises:
        InvalidParameter: It can't be that; names the entry.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidParameter("metadata must be a mapping of text to text", details={"path": "metadata"})
    size = 0
    found = dict(metadata)
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            what = "a key" if not isinstance(key, str) else "a value"
            raise InvalidParameter(
                f"metadata[{key!r}]: {what} must be text, not {type(value if what == 'a value' else key).__name__}",
                details={"path": f"metadata[{key!r}]"},
            )
        if not (_sendable(key) and _sendable(value)):
            raise InvalidParameter(
                f"metadata[{key!r}] has a lone surrogate, which is no text", details={"path": f"metadata[{key!r}]"}
            )
        size += len(key) + len(value)
    if len(found) > METADATA_ENTRIES or size > METADATA_SIZE:
        raise InvalidParameter(
            f"metadata has {len(found)} entries of {size} characters; the limits are {METADATA_ENTRIES} and {METADATA_SIZE}",
            details={"path": "metadata"},
        )
    return found
