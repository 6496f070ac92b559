"""Time limits: their check, their source, and their text in messages."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from snakepit_trio.errors import InvalidParameter

__all__ = ["NEVER", "TimeLimit", "as_given", "check_timeout", "seconds"]

#: Seconds, about thirty years: a longer limit counts as none, so that no arithmetic overflows.
NEVER: Final = 1e9


class TimeLimit(NamedTuple):
    """A time limit with the option that sets it; as text, the option and its value.

    Attributes:
        seconds: The limit; None for no limit.
        option: The option's name.
        of_pool: Whether the limit comes from the pool's configuration rather than from the caller.
    """

    seconds: float | None
    option: str = "timeout"
    of_pool: bool = False

    def __str__(self) -> str:
        whose = "the pool's " if self.of_pool else ""
        return f"{whose}{self.option}={None if self.seconds is None else as_given(self.seconds)}"


def check_timeout(timeout: Any) -> float | None:
    """Return a timeout in seconds (0 has already passed), or None for no limit; a limit of ``NEVER`` or more counts as none.

    Raises:
        InvalidParameter: The timeout is neither None nor such a number.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidParameter(
            f"timeout must be a number of seconds, at least 0, or None, not {timeout!r}", details={"path": "timeout"}
        )
    return timeout if timeout < NEVER else None


def as_given(value: float) -> str:
    """Return an option's value in plain decimal notation, such as ``"0.5"`` or ``"7200"``."""
    found = f"{value:.6g}"
    return found if "e" not in found else f"{value:.6f}".rstrip("0").rstrip(".")


def seconds(value: float) -> str:
    """Return a duration for a message in plain decimal notation, such as ``"0.25 s"`` or ``"7200 s"``."""
    return f"{value:.3g} s" if 0.0001 <= value < 999.5 else f"{round(value, 4):.0f} s"
