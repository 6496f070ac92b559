"""Records of sessions and programs, and the quotas of a store."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import msgspec

from snakepit_trio._timeouts import NEVER
from snakepit_trio.errors import InvalidParameter, QuotaExceeded, SessionNotFound

__all__ = [
    "Limits",
    "OddRows",
    "ProgramInfo",
    "SessionInfo",
    "check_name",
    "check_ttl",
    "compare_and_set",
    "new_generation",
    "over_quota",
    "session_not_found",
]

_log = logging.getLogger(__name__)

_LONGEST_NAME = 256
#: The number of malformed rows that are remembered as reported; further ones are not reported.
_MOST_TOLD = 1000


@attrs.frozen(kw_only=True)
class SessionInfo:
    """A session at one moment. Times are seconds on the store's clock; sizes are bytes.

    Attributes:
        id: The id.
        ttl: Seconds without use after which it expires; None: never.
        metadata: The strings given when it was opened.
        created_at, used_at: The times of its creation and of its last use.
        expires_in: Seconds until it expires if it is not used; None: never.
        entries, size: The number of its values, and of their bytes.
        generation: Distinguishes it from other sessions with the same id.
    """

    id: str
    ttl: float | None
    metadata: Mapping[str, str]
    created_at: float
    used_at: float
    expires_in: float | None
    entries: int
    size: int
    generation: str


@attrs.frozen(kw_only=True)
class ProgramInfo:
    """A program, that is a named blob, at one moment.

    Attributes:
        name: The name.
        session: The id of the session to which it belongs; None: a program for all.
        size: The number of bytes.
        expires_in: Seconds until it expires; None: never.
    """

    name: str
    session: str | None
    size: int
    expires_in: float | None


@attrs.frozen(kw_only=True)
class Limits:
    """Quotas; None for no limit. See ``snakepit_trio.RuntimeConfig`` for each."""

    max_sessions: int | None = None
    session_max_entries: int | None = None
    session_max_bytes: int | None = None
    max_programs: int | None = None
    program_max_bytes: int | None = None
    programs_max_bytes: int | None = None


class OddRows:
    """Reports malformed rows of a store, each once; a malformed row is then ignored.

    A store outlives the program that wrote it, and other programs can write to it.
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def tell(self, kind: str, *names: object) -> None:
        """Log a warning about a row at its first report.

        Args:
            kind: The kind: ``"session"``, ``"value"``, ``"program"``, ``"total"`` or ``"key"``.
            names: The keys of the row: strings, or other values in their place.
        """
        row = kind, " of ".join(ascii(_as_text(name))[:100] for name in names)
        if row not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(row)
            _log.warning("the store has a %s that makes no sense, and is passed over: %s", *row)

    def metadata(self, id: str, data: Any) -> dict[str, str]:
        """Return a session's metadata from its row; empty if the row is malformed."""
        try:
            return msgspec.json.decode(data, type=dict[str, str])
        except (msgspec.MsgspecError, TypeError, ValueError):
            self.tell("session's metadata", id)
            return {}


def _as_text(name: object) -> object:
    try:
        return name.decode() if isinstance(name, bytes) else name
    except UnicodeDecodeError:
        return name


def over_quota(quota: str, limit: int, used: int, asked: int) -> QuotaExceeded:
    """Return the error of a write that was refused before it changed anything."""
    return QuotaExceeded(
        f"{quota} is {limit}: {used} are used, {asked} more were asked for",
        details={"quota": quota, "limit": limit, "used": used, "asked": asked},
    )


def new_generation() -> str:
    """Return a new identity of a session, different from those of all other sessions with its id."""
    return secrets.token_hex(8)


def session_not_found(id: str) -> SessionNotFound:
    """Return the error for a session that does not exist, or no longer."""
    return SessionNotFound(f"there is no session {id!r}", details={"session": id})


def check_ttl(value: object) -> float | None:
    """Return a TTL in seconds; None for no expiry.

    Raises:
        InvalidParameter: The value is neither None nor a positive number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidParameter(
            f"ttl must be a positive number of seconds or None, not {value!r}", details={"path": "ttl"}
        )
    return float(value) if value < NEVER else None


def check_name(value: object, what: str) -> str:
    """Return a valid id, key or name.

    Raises:
        InvalidParameter: The value is not text of 1 to 256 bytes without control characters.
    """
    if (
        not isinstance(value, str)
        or not 0 < len(value.encode(errors="surrogatepass")) <= _LONGEST_NAME
        or not value.isprintable()
    ):
        raise InvalidParameter(
            f"{what} must be printable text of 1 to {_LONGEST_NAME} bytes, not {ascii(value)[:80]}",
            details={"path": what},
        )
    return value


async def compare_and_set(
    read: Callable[[str], Awaitable[tuple[Any, int]]],
    store: Callable[..., Awaitable[int | None]],
    key: str,
    function: Callable[[Any], Any],
    default: Any,
) -> Any:
    """Replace a value by a function of it, repeatedly until no other update comes first, and return the new value.

    A cancellation comes before an attempt to store, and nothing is stored, or after it.

    Args:
        read, store: ``get_versioned`` and ``put`` of a session.
    """
    while True:
        value, version = await read(key)
        new = function(value if version else default)
        if await store(key, new, expect=version) is not None:
            return new
