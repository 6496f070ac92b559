"""Output for people and agents: text without control characters, values as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["encoded", "json_bytes", "one_line", "printable", "to_plain"]

#: The largest number of characters of a text in one line of a log.
_LINE = 1000


def printable(text: str) -> str:
    """Return text with line ends and tabs, and with every other control or format character as ``\\xNN``."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def one_line(text: str) -> str:
    """Return text as one line of a log, with line ends as ``\\n``, truncated."""
    shown = text if len(text) <= _LINE else f"{text[:_LINE]}..."
    return printable(shown).replace("\n", "\\n").replace("\t", " ")


def to_plain(value: Any) -> Any:
    """Convert a value without a JSON type to a list or text, for ``msgspec.json.encode(..., enc_hook=to_plain)``."""
    for name in ("tolist", "isoformat"):
        method = getattr(value, name, None)
        if callable(method):
            return method()
    if isinstance(value, complex):
        return [value.real, value.imag]
    return str(value)


def json_bytes(value: Any, *, not_finite: Callable[[float], Any] = str) -> bytes:
    """Encode any value as JSON. ``not_finite`` converts nan and infinity, which JSON can't represent."""
    import msgspec

    data = encoded(value, to_plain)
    if b"null" not in data:
        return data
    # Otherwise nan would become null.
    return encoded(_finite(msgspec.to_builtins(value, enc_hook=to_plain), not_finite), to_plain)


def encoded(value: Any, hook: Callable[[Any], Any]) -> bytes:
    """Encode as JSON; ``hook`` converts values without a JSON type. Text without a UTF-8 form, such as file names, is
    escaped.
    """
    import msgspec

    try:
        return msgspec.json.encode(value, enc_hook=hook)
    except UnicodeEncodeError:
        return msgspec.json.encode(_escaped(msgspec.to_builtins(value, enc_hook=hook)), enc_hook=hook)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key) if isinstance(key, str) else key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return value


def _finite(value: Any, instead: Callable[[float], Any]) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else instead(value)
    if isinstance(value, dict):
        return {key: _finite(item, instead) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, instead) for item in value]
    return value
