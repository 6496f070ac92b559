"""Text from elsewhere, without what a terminal or the reader of a log would act on."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text with line ends and tabs, and every other control or format character as ``\\xNN``."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
