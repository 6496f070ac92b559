"""What people and agents get to see: text without what a terminal or the reader of a log would act on, values as JSON."""

from __future__ import annotations

from typing import Any

__all__ = ["printable", "to_plain"]


def printable(text: str) -> str:
    """The text with line ends and tabs, and every other control or format character as ``\\xNN``."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def to_plain(value: Any) -> Any:
    """A value of a type that JSON does not have as a list or text; for ``msgspec.json.encode(..., enc_hook=to_plain)``."""
    for name in ("tolist", "isoformat"):
        method = getattr(value, name, None)
        if callable(method):
            return method()
    if isinstance(value, complex):
        return [value.real, value.imag]
    return str(value)
