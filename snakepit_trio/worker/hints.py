"""Conversions of received values to annotated types beyond msgspec's own, and detection of annotations that no value can
satisfy.

Classes that are sent as themselves also accept text, as callers with only JSON write such values.
"""

from __future__ import annotations

import collections
import datetime as dt
import inspect
import sys
import types
import typing
from enum import Enum, Flag
from typing import Any

import msgspec

__all__ = ["enum_by_hand", "impossible", "is_judged", "name_of", "remedy", "restore", "schema_of", "takes_none"]

#: By module and name of a class: its name in JSON Schema, and the types from which calling it creates an instance.
_FROM_TEXT: dict[tuple[str, str], str] = {
    ("pathlib", "Path"): "path",
    ("pathlib", "PosixPath"): "path",
    ("pathlib", "WindowsPath"): "path",
    ("pathlib", "PurePath"): "path",
    ("pathlib", "PurePosixPath"): "path",
    ("pathlib", "PureWindowsPath"): "path",
    ("fractions", "Fraction"): "fraction",
    ("ipaddress", "IPv4Address"): "ipv4",
    ("ipaddress", "IPv6Address"): "ipv6",
    ("ipaddress", "IPv4Network"): "ipv4-network",
    ("ipaddress", "IPv6Network"): "ipv6-network",
    ("ipaddress", "IPv4Interface"): "ipv4-interface",
    ("ipaddress", "IPv6Interface"): "ipv6-interface",
    ("zoneinfo", "ZoneInfo"): "timezone",
    ("pandas", "Timestamp"): "date-time",
    ("pandas", "Timedelta"): "duration",
    ("numpy", "datetime64"): "date-time",
    ("numpy", "timedelta64"): "duration",
}
#: Subclasses of these are created from a value of the base.
_BASES = (str, int, float, bytes, dict, list, collections.deque)
#: The modules of libraries whose arrays, tables and scalars can be sent; which of their classes can is not checked here.
_LIBRARIES = ("numpy", "pandas", "polars", "pyarrow")


def restore(kind: Any, value: Any) -> Any:
    """Return the value converted to an annotation; unchanged if no conversion is needed or possible.

    Raises:
        ValueError: The value is invalid, such as a text that is not an address.
    """
    cls = typing.get_origin(kind) or kind
    if not isinstance(cls, type) or isinstance(value, cls):
        return value
    try:
        return _made(cls, value)
    except Exception as exc:
        raise ValueError(f"expected {name_of(kind)}, got {_shown(value)}: {_reason(exc)}") from None


def _made(cls: type, value: Any) -> Any:
    given = type(value)
    known = _known(cls)
    if known is not None:
        if given is str or (given is int and known == "fraction"):
            return cls(value)
        if known in ("date-time", "duration") and cls.__module__.startswith("pandas"):
            # The standard library's class, of which the library's class is a subclass.
            return cls(value) if isinstance(value, dt.datetime | dt.timedelta) else value
        return value
    if _is_pattern(cls):
        import re

        return re.compile(value) if given in (str, bytes) else value
    if _is_model(cls):
        return cls.model_validate(value) if given is dict else value  # type: ignore[attr-defined]
    if _is_numpy_scalar(cls):
        made = cls(value) if given in (bool, int, float, complex, str, bytes) else value
        return made if made == value else value
    if cls is collections.defaultdict and given is dict:
        # What its values are made by stays with its sender.
        return collections.defaultdict(None, value)
    if _is_made_from_base(cls) and given in (*_BASES, tuple):
        base = next(base for base in _BASES if issubclass(cls, base))
        return cls(value) if given is base or (given is list and base is collections.deque) else value
    return value


def impossible(hint: Any) -> bool:
    """Return whether no value that can be sent satisfies an annotation; False in doubt."""
    if takes_none(hint):
        return False
    hint = _bare(hint)
    cls = typing.get_origin(hint) or hint
    if not isinstance(cls, type) or cls.__module__.partition(".")[0] in _LIBRARIES:
        return False
    try:
        if not isinstance(msgspec.inspect.type_info(hint), msgspec.inspect.CustomType):
            return False
        if getattr(cls, "_is_protocol", False) or (inspect.isabstract(cls) and cls.__module__ != "collections.abc"):
            # Any class may satisfy a protocol.
            return False
        return not (
            _known(cls)
            or _is_pattern(cls)
            or _is_model(cls)
            or _is_made_from_base(cls)
            or any(issubclass(sent, cls) for sent in _sent())
        )
    except Exception:
        return False  # A class that msgspec, or its own metaclass, has no answer for.


def is_judged(hint: Any) -> bool:
    """Return whether msgspec can check a value against an annotation; a protocol may not be checkable at run time."""
    cls = typing.get_origin(hint) or hint
    return not getattr(cls, "_is_protocol", False) or getattr(cls, "_is_runtime_protocol", False)


def enum_by_hand(hint: Any) -> type[Enum] | None:
    """Return the Enum of an annotation, with or without None, whose members msgspec can't identify by their values.

    Its values are not all text or all numbers, or its members are flags, whose combinations have no names.
    """
    hint = _bare(hint)
    if not isinstance(hint, type) or not issubclass(hint, Enum):
        return None
    kinds = {type(member.value) for member in hint}
    return hint if issubclass(hint, Flag) or (kinds and kinds not in ({str}, {int})) else None


def schema_of(kind: Any) -> dict[str, Any]:
    """Return a JSON Schema for a type for which msgspec has none."""
    cls = typing.get_origin(kind) or kind
    known = "regex" if _is_pattern(cls) else _known(cls)
    if known is not None:
        return {"type": "string", "format": known}
    # msgspec would treat an empty schema as missing.
    return {"title": name_of(kind)}


def _bare(hint: Any) -> Any:
    """Return an annotation without Annotated, and without None in a union."""
    while True:
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Annotated:
            hint = arguments[0]
        elif len(arguments) == 2 and takes_none(hint):
            hint = arguments[0] if arguments[1] is type(None) else arguments[1]
        else:
            return hint


def takes_none(hint: Any) -> bool:
    """Return whether an annotation is a union with None."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint)


def _known(cls: type) -> str | None:
    module = cls.__module__.partition(".")[0]
    found = _FROM_TEXT.get((module, cls.__name__))
    return found if found is not None and getattr(sys.modules.get(module), cls.__name__, None) is cls else None


def _is_pattern(cls: type) -> bool:
    return cls.__module__ == "re" and cls.__name__ == "Pattern"


def _is_model(cls: type) -> bool:
    return hasattr(cls, "__pydantic_fields__") and callable(getattr(cls, "model_validate", None))


def _is_numpy_scalar(cls: type) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(cls, numpy.generic)


def _is_made_from_base(cls: type) -> bool:
    return issubclass(cls, _BASES) and not issubclass(cls, Enum)


def _sent() -> list[type]:
    """Return the types that are sent as themselves and are always available."""
    import array
    import decimal
    import fractions
    import ipaddress
    import pathlib
    import uuid
    import zoneinfo

    return [
        type(None), bool, int, float, str, bytes, bytearray, memoryview, list, tuple, set, frozenset, dict, complex,
        dt.datetime, dt.date, dt.time, dt.timedelta, dt.timezone, zoneinfo.ZoneInfo,
        decimal.Decimal, uuid.UUID, fractions.Fraction, array.array, pathlib.PosixPath, pathlib.PureWindowsPath,
        ipaddress.IPv4Address, ipaddress.IPv6Network, ipaddress.IPv4Interface,
    ]  # fmt: skip


def remedy(hint: Any) -> str:
    """What to write in place of an annotation that no value meets."""
    cls = typing.get_origin(hint) or hint
    if hasattr(cls, "__dlpack__"):
        return "annotate it as numpy.ndarray, as which arrays of other libraries arrive"
    return "annotate it with one that docs/payloads.md lists, such as a dataclass"


def name_of(hint: Any) -> str:
    """Return the name of an annotation."""
    return hint.__qualname__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _reason(exc: Exception) -> str:
    return "; ".join(line.strip() for line in str(exc).splitlines())[:300] or type(exc).__name__


def _shown(value: Any) -> str:
    """Return a text, truncated; for any other value its type, because a value may be secret, or long."""
    return repr(value[:60]) if type(value) is str else type(value).__name__
