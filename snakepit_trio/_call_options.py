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
]

#: Metadata of one request: how many entries, and how many characters in all.
METADATA_ENTRIES = 64
METADATA_SIZE = 8192


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


def check_options(priority: int, metadata: Mapping[str, str] | None, idempotent: bool | None = None) -> None:
    """Refuse what these options of a call can't be.

    Raises:
        InvalidParameter: One is of another type, or the metadata is too large.
    """
    if idempotent is not None and type(idempotent) is not bool:
        raise InvalidParameter(f"idempotent must be a bool or None, not {idempotent!r}", details={"path": "idempotent"})
    if type(priority) is not int:
        raise InvalidParameter(f"priority must be an int, not {priority!r}", details={"path": "priority"})
    if metadata:
        check_metadata(metadata)


def check_limit(limit: int | None) -> None:
    """Refuse what the limit of a map can't be.

    Raises:
        InvalidParameter: It is neither a positive int nor None.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidParameter(f"limit must be a positive int or None, not {limit!r}", details={"path": "limit"})


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise ``InvalidParameter`` for what can't be a request's metadata."""
    if not isinstance(metadata, Mapping):
        raise InvalidParameter("metadata must be a mapping of text to text", details={"path": "metadata"})
    size = 0
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            what = "a key" if not isinstance(key, str) else "a value"
            raise InvalidParameter(
                f"metadata[{key!r}]: {what} must be text, not {type(value if what == 'a value' else key).__name__}",
                details={"path": f"metadata[{key!r}]"},
            )
        size += len(key) + len(value)
    if len(metadata) > METADATA_ENTRIES or size > METADATA_SIZE:
        raise InvalidParameter(
            f"metadata has {len(metadata)} entries of {size} characters; the limits are {METADATA_ENTRIES} and {METADATA_SIZE}",
            details={"path": "metadata"},
        )
