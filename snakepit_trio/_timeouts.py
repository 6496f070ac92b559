"""A timeout as a caller gives it, and as a message tells it."""

from __future__ import annotations

from typing import Any, Final

from snakepit_trio.errors import InvalidParameter

__all__ = ["NEVER", "check_timeout", "seconds"]

#: Seconds, some thirty years: what is to take longer has no limit, and needs no arithmetic that overflows.
NEVER: Final = 1e9


def check_timeout(timeout: Any) -> float | None:
    """Seconds, 0 included (the time is spent already); None for no limit, and for one that nobody will live to see.

    Raises:
        InvalidParameter: It is neither None nor such a number.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidParameter(
            f"timeout must be a number of seconds, at least 0, or None, not {timeout!r}", details={"path": "timeout"}
        )
    return timeout if timeout < NEVER else None


def seconds(value: float) -> str:
    """A span of time in a message, such as ``"0.25 s"`` or ``"7200 s"``: never as a power of ten."""
    return f"{value:.3g} s" if 0.0001 <= value < 999.5 else f"{round(value, 4):.0f} s"
