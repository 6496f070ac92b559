"""A timeout as a caller gives it, whose it is, and as a message tells it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from snakepit_trio.errors import InvalidParameter

__all__ = ["NEVER", "TimeLimit", "as_given", "check_timeout", "seconds"]

#: Seconds, some thirty years: what is to take longer has no limit, and needs no arithmetic that overflows.
NEVER: Final = 1e9


class TimeLimit(NamedTuple):
    """How long a call may take, and which option says so; as text, that option with its value.

    Attributes:
        seconds: How long; None: there is no limit.
        option: The option's name.
        of_pool: The pool's configuration says so; the caller has said nothing.
    """

    seconds: float | None
    option: str = "timeout"
    of_pool: bool = False

    def __str__(self) -> str:
        whose = "the pool's " if self.of_pool else ""
        return f"{whose}{self.option}={None if self.seconds is None else as_given(self.seconds)}"


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


def as_given(value: float) -> str:
    """The value of an option as somebody would write it, such as ``"0.5"`` or ``"7200"``: never as a power of ten."""
    found = f"{value:.6g}"
    return found if "e" not in found else f"{value:.6f}".rstrip("0").rstrip(".")


def seconds(value: float) -> str:
    """A span of time in a message, such as ``"0.25 s"`` or ``"7200 s"``: never as a power of ten."""
    return f"{value:.3g} s" if 0.0001 <= value < 999.5 else f"{round(value, 4):.0f} s"
