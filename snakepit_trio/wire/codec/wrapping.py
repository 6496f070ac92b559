"""Values as msgspec can encode them, each type kept exact; see :mod:`.extensions`."""

from __future__ import annotations

import array
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import re
import sys
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from snakepit_trio.wire.frames import MOST_BUFFERS

from . import extensions, tables

__all__ = ["Refused", "Wrapper", "type_name"]

Ext = msgspec.msgpack.Ext

_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1
_KEYS = frozenset({type(None), bool, int, float, str, bytes})

_pack = msgspec.msgpack.Encoder().encode


class Refused(Exception):
    """A value can't travel. ``path`` is where it is, ``reason`` why."""

    def __init__(self, path: str, reason: str) -> None:
        if len(path) > 200:
            path = f"{path[:100]}...{path[-80:]}"
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def type_name(value: object) -> str:
    """Return the name of a value's class for people, never its content."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


class Wrapper:
    """Wraps one value.

    Args:
        threshold: Binary values of at least this many bytes go to ``buffers`` instead of into the data, up to a
            payload's largest number of buffers.
        limit: The largest size of the value in bytes; a value that reports a larger size is not even converted.
        convert: Whether to convert a value outside the domain by the object's own methods.
        marker: With ``convert``: replace a value that can't be converted by a map that names its type.
    """

    def __init__(self, *, threshold: int, limit: int = _LARGEST, convert: bool = False, marker: bool = False) -> None:
        self.buffers: list[memoryview] = []
        self._threshold = threshold
        self._limit = limit
        self._convert = convert
        self._marker = marker

    def wrap(self, value: Any, path: str, depth: int = 0) -> Any:
        """Return the value with Ext objects for types that MessagePack lacks.

        Raises:
            Refused: The value contains something that can't be sent.
        """
        kind = type(value)
        if kind is str:
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise Refused(path, "text with a lone surrogate has no UTF-8 form") from None
            return value
        if value is None or kind is bool or kind is float:
            return value
        if kind is int:
            if _SMALLEST <= value <= _LARGEST:
                return value
            return Ext(extensions.INT, value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True))
        if depth > extensions.MAX_DEPTH:
            raise Refused(path, f"is nested deeper than {extensions.MAX_DEPTH} levels, or contains itself")
        wrapper = _WRAPPERS.get(kind)
        if wrapper is not None:
            return wrapper(self, value, path, depth)
        return self._other(value, path, depth)

    # ---- containers --------------------------------------------------------------------------------

    def _list(self, value: Sequence[Any], path: str, depth: int) -> list[Any]:
        return [self.wrap(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], path: str, depth: int) -> Any:
        return Ext(extensions.TUPLE, _pack(self._list(value, path, depth)))

    def _set(self, value: set[Any] | frozenset[Any], path: str, depth: int) -> Any:
        code = extensions.SET if type(value) is set else extensions.FROZENSET
        return Ext(code, _pack(self._list(list(value), path, depth)))

    def _dict(self, value: dict[Any, Any], path: str, depth: int) -> Any:
        if all(type(key) in _KEYS and not (type(key) is int and not _SMALLEST <= key <= _LARGEST) for key in value):
            return {
                self.wrap(key, f"{path}[{_shown(key)}]", depth): self.wrap(item, f"{path}[{_shown(key)}]", depth + 1)
                for key, item in value.items()
            }
        pairs = [
            [
                self.wrap(key, f"the key {index} of {path}", depth + 1),
                self.wrap(item, f"{path}[{_shown(key)}]", depth + 1),
            ]
            for index, (key, item) in enumerate(value.items())
        ]
        return Ext(extensions.PAIRS, _pack(pairs))

    # ---- binary values -----------------------------------------------------------------------------

    def _is_inline(self, size: int) -> bool:
        return size < self._threshold or len(self.buffers) >= MOST_BUFFERS

    def _out_of_band(self, view: memoryview) -> int:
        self.buffers.append(view)
        return len(self.buffers) - 1

    def _bulk(self, view: memoryview) -> bytes | int:
        """Return the bytes themselves, or the number of the buffer that holds them."""
        return bytes(view) if self._is_inline(view.nbytes) else self._out_of_band(view.cast("B").toreadonly())

    def _bytes(self, value: bytes, path: str, depth: int) -> Any:
        if self._is_inline(len(value)):
            return value
        return Ext(extensions.BUFFER, _pack([0, self._out_of_band(memoryview(value))]))

    def _bytearray(self, value: bytearray, path: str, depth: int) -> Any:
        if self._is_inline(len(value)):
            return Ext(extensions.BYTEARRAY, bytes(value))
        return Ext(extensions.BUFFER, _pack([1, self._out_of_band(memoryview(value).toreadonly())]))

    def _memoryview(self, value: memoryview, path: str, depth: int) -> Any:
        try:
            if value.ndim != 1 or value.format not in ("B", "b", "c") or not value.contiguous:
                raise Refused(path, "a memoryview must be one-dimensional, contiguous and of bytes")
        except ValueError:
            raise Refused(path, "a released memoryview has no contents") from None
        value = value.cast("B") if value.format != "B" else value
        if self._is_inline(value.nbytes):
            return Ext(extensions.MEMORYVIEW, bytes(value))
        return Ext(extensions.BUFFER, _pack([2, self._out_of_band(value.toreadonly())]))

    # ---- the standard library's values ---------------------------------------------------------------

    def _datetime(self, value: dt.datetime, path: str, depth: int) -> Any:
        body = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
        return Ext(extensions.DATETIME, _pack([*body, value.fold, _zone(value.tzinfo, path)]))

    def _date(self, value: dt.date, path: str, depth: int) -> Any:
        return Ext(extensions.DATE, _pack([value.year, value.month, value.day]))

    def _time(self, value: dt.time, path: str, depth: int) -> Any:
        body = [value.hour, value.minute, value.second, value.microsecond]
        return Ext(extensions.TIME, _pack([*body, value.fold, _zone(value.tzinfo, path)]))

    def _timedelta(self, value: dt.timedelta, path: str, depth: int) -> Any:
        return Ext(extensions.TIMEDELTA, _pack([value.days, value.seconds, value.microseconds]))

    def _decimal(self, value: decimal.Decimal, path: str, depth: int) -> Any:
        text = str(value)
        if len(text) > extensions.LONGEST_DECIMAL:
            raise Refused(path, "a Decimal of more than a million digits")
        return Ext(extensions.DECIMAL, text.encode())

    def _uuid(self, value: uuid.UUID, path: str, depth: int) -> Any:
        return Ext(extensions.UUID, value.bytes)

    def _complex(self, value: complex, path: str, depth: int) -> Any:
        return Ext(extensions.COMPLEX, _pack([value.real, value.imag]))

    def _path(self, value: Any, path: str, depth: int) -> Any:
        text = str(value)
        if len(text) > extensions.LONGEST_PATH:
            raise Refused(path, f"a path of more than {extensions.LONGEST_PATH} characters")
        try:
            # Bytes of a file's name without a text form are surrogates in it.
            name = text.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise Refused(path, "a path with a lone surrogate has no UTF-8 form") from None
        return Ext(extensions.PATH, _pack([extensions.PATHS.index(type(value).__name__), name]))

    def _fraction(self, value: Any, path: str, depth: int) -> Any:
        parts = (value.numerator, value.denominator)
        if any(part.bit_length() > 8 * extensions.LONGEST_FRACTION for part in parts):
            raise Refused(path, f"a Fraction of parts with more than {extensions.LONGEST_FRACTION} bytes")
        return Ext(extensions.FRACTION, _pack([self.wrap(part, path) for part in parts]))

    def _address(self, value: Any, path: str, depth: int) -> Any:
        return Ext(extensions.ADDRESS, _pack([extensions.ADDRESSES.index(type(value).__name__), str(value)]))

    def _pattern(self, value: re.Pattern[Any], path: str, depth: int) -> Any:
        if len(value.pattern) > extensions.LONGEST_PATTERN:
            raise Refused(path, f"a regular expression of more than {extensions.LONGEST_PATTERN} characters")
        if value.flags & re.DEBUG:
            raise Refused(path, "a regular expression with the flag DEBUG")
        return Ext(extensions.PATTERN, _pack([self.wrap(value.pattern, path), int(value.flags)]))

    def _time_zone(self, value: dt.tzinfo, path: str, depth: int) -> Any:
        return Ext(extensions.ZONE, _pack([_zone(value, path)]))

    # ---- pandas' values --------------------------------------------------------------------------------

    def _timestamp(self, value: Any, path: str, depth: int) -> Any:
        zone = None if value.tzinfo is None else _zone(value.tzinfo, path)
        # In UTC, where each moment is unique.
        return Ext(extensions.PANDAS_TIME, _pack([extensions.TIMESTAMP, int(value.asm8.view("i8")), value.unit, zone]))

    def _pandas_timedelta(self, value: Any, path: str, depth: int) -> Any:
        return Ext(extensions.PANDAS_TIME, _pack([extensions.PANDAS_TIMEDELTA, int(value.asm8.view("i8")), value.unit]))

    def _not_a_time(self, value: Any, path: str, depth: int) -> Any:
        return Ext(extensions.PANDAS_TIME, _pack([extensions.NOT_A_TIME]))

    # ---- everything else -----------------------------------------------------------------------------

    def _other(self, value: Any, path: str, depth: int) -> Any:
        module, named = _BY_NAME.get(type(value).__name__, ("", None))
        if named is not None and getattr(sys.modules.get(module), type(value).__name__, None) is type(value):
            return named(self, value, path, depth)
        if isinstance(value, enum.Enum):
            # Restored by the receiver's annotation, like classes with fields.
            return self.wrap(value.value, path, depth + 1)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if type(value) in (numpy.ndarray, numpy.memmap):
                return self._ndarray(numpy, value, path)
            if isinstance(value, numpy.ndarray):
                return self._special_array(numpy, value, path)
            if isinstance(value, numpy.bytes_ | numpy.str_):
                # Not by its bytes, from which numpy strips trailing zeros.
                return Ext(
                    extensions.NUMPY_SCALAR,
                    _pack(
                        ["S", bytes(value)]
                        if isinstance(value, bytes)
                        else ["U", self.wrap(str.__str__(value), path).encode()]
                    ),
                )
            if isinstance(value, numpy.generic) and not isinstance(value, numpy.void | numpy.object_):
                return Ext(extensions.NUMPY_SCALAR, _pack([value.dtype.str, value.tobytes()]))
        if type(value) is array.array:
            return Ext(
                extensions.ARRAY, _pack([value.typecode, value.itemsize, self._bulk(memoryview(value).cast("B"))])
            )
        kind = tables.table_kind(value)
        if kind is not None:
            try:
                stream = tables.to_stream(value, kind)
            except Exception as exc:
                raise Refused(path, f"Arrow can't hold this {type_name(value)}: {str(exc)[:200]}") from exc
            return Ext(extensions.TABLE, _pack([kind, self._bulk(stream)]))
        if tables.is_array(value):
            try:
                found = tables.to_array(value)
            except Exception as exc:
                raise Refused(path, f"numpy can't see this {type_name(value)}: {str(exc)[:200]}") from exc
            return self._ndarray(numpy, found, path)
        fields = _record(value)
        if fields is not None:
            return self._dict(fields, path, depth)
        if self._convert:
            return self._converted(value, path, depth)
        raise Refused(path, f"a value of type {type_name(value)} can't be sent")

    def _special_array(self, numpy: Any, value: Any, path: str) -> Any:
        """Refuse an array of a subclass, which would arrive as an ordinary one: without its mask, with other operators."""
        if self._convert and not isinstance(value, numpy.ma.MaskedArray):
            return self._ndarray(numpy, numpy.asarray(value), path)
        hint = ".filled()" if isinstance(value, numpy.ma.MaskedArray) else "numpy.asarray of it"
        raise Refused(path, f"a value of type {type_name(value)} can't be sent as what it is; pass {hint}")

    def _ndarray(self, numpy: Any, value: Any, path: str) -> Any:
        if value.dtype.hasobject:
            raise Refused(path, "an array of Python objects can't be sent")
        descr = numpy.lib.format.dtype_to_descr(value.dtype)
        if numpy.lib.format.descr_to_dtype(descr) != value.dtype:
            raise Refused(path, f"an array of dtype {value.dtype} can't be sent exactly")
        shape = list(value.shape)
        if not value.nbytes:
            return Ext(extensions.NDARRAY, _pack([descr, shape, b""]))
        flat = numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)
        return Ext(extensions.NDARRAY, _pack([descr, shape, self._bulk(memoryview(flat))]))

    def _converted(self, value: Any, path: str, depth: int) -> Any:
        base: Any
        for base in (bool, int, float, str, bytes, bytearray, dict, list, set, frozenset):
            if isinstance(value, base):
                return self.wrap(base(value), path, depth + 1)
        if isinstance(value, tuple) and not hasattr(value, "_asdict"):
            return self.wrap(tuple(value), path, depth + 1)
        for name in ("__array__", "model_dump", "to_dict", "_asdict", "isoformat"):
            method = getattr(type(value), name, None)
            if not callable(method):
                continue
            size = _least_size(value)
            if size > self._limit:
                raise Refused(
                    path,
                    f"a value of type {type_name(value)} of at least {size} bytes; the limit is {self._limit} (max_payload)",
                )
            try:
                found = method(value)
            except Exception as exc:
                raise Refused(path, f"{type_name(value)}.{name}() raised {type(exc).__name__}") from exc
            if type(found) is not type(value):
                return self.wrap(found, path, depth + 1)
        if self._marker:
            return {"__snakepit_unserializable__": True, "type": type_name(value)}
        raise Refused(path, f"a value of type {type_name(value)} can't be sent")


_WRAPPERS: dict[type, Callable[[Wrapper, Any, str, int], Any]] = {
    list: Wrapper._list,
    tuple: Wrapper._tuple,
    set: Wrapper._set,
    frozenset: Wrapper._set,
    dict: Wrapper._dict,
    bytes: Wrapper._bytes,
    bytearray: Wrapper._bytearray,
    memoryview: Wrapper._memoryview,
    dt.datetime: Wrapper._datetime,
    dt.date: Wrapper._date,
    dt.time: Wrapper._time,
    dt.timedelta: Wrapper._timedelta,
    decimal.Decimal: Wrapper._decimal,
    uuid.UUID: Wrapper._uuid,
    complex: Wrapper._complex,
    dt.timezone: Wrapper._time_zone,
}
#: By class name: the module that defines it, and the method that wraps it, so that the check imports nothing.
_BY_NAME: dict[str, tuple[str, Callable[[Wrapper, Any, str, int], Any]]] = {
    **dict.fromkeys(extensions.PATHS, ("pathlib", Wrapper._path)),
    **dict.fromkeys(extensions.ADDRESSES, ("ipaddress", Wrapper._address)),
    "Fraction": ("fractions", Wrapper._fraction),
    "Pattern": ("re", Wrapper._pattern),
    "ZoneInfo": ("zoneinfo", Wrapper._time_zone),
    "Timestamp": ("pandas", Wrapper._timestamp),
    "Timedelta": ("pandas", Wrapper._pandas_timedelta),
    "NaTType": ("pandas._libs.tslibs.nattype", Wrapper._not_a_time),
}


def _shown(key: Any) -> str:
    """Return a key for a path; a long one is truncated, an odd one is replaced by its type."""
    if type(key) is str:
        text = json.dumps(key)
        return text if len(text) <= 64 else f'{text[:60]}..."'
    if type(key) in _KEYS or type(key) is tuple:
        text = ascii(key)
        return text if len(text) <= 64 else f"{text[:60]}..."
    return f"<{type_name(key)}>"


def _least_size(value: Any) -> int:
    """Return the smallest size that a value can have, as far as it reports one without conversion: each item takes one
    byte.
    """
    found = 0
    for ask in (lambda: value.nbytes, lambda: math.prod(value.shape), lambda: len(value)):
        try:
            size = ask()
        except Exception:
            continue  # It does not report one.
        if isinstance(size, int):
            found = max(found, size)
    return found


def _record(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass, an attrs class, a msgspec Struct or a pydantic model; None for any other value."""
    cls = type(value)
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in cls.__struct_fields__}
    if dataclasses.is_dataclass(cls):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(cls)}
    if hasattr(cls, "__pydantic_fields__") and "pydantic" in sys.modules and isinstance(value, _pydantic()):
        return {name: getattr(value, name) for name in cls.__pydantic_fields__}
    attributes = getattr(cls, "__attrs_attrs__", None)
    if attributes is not None:
        return {attribute.name: getattr(value, attribute.name) for attribute in attributes}
    return None


def _pydantic() -> Any:
    return sys.modules["pydantic"].BaseModel


def _zone(zone: dt.tzinfo | None, path: str) -> str | list[int] | None:
    if zone is None:
        return None
    if zone is dt.UTC:
        return "UTC"
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None)
        if dt.timezone(offset, zone.tzname(None)) == zone and zone.tzname(None) == dt.timezone(offset).tzname(None):
            return [offset.days, offset.seconds, offset.microseconds]
        raise Refused(path, "a timezone with a name of its own can't be sent exactly")
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return f"zone:{zone.key}"
    raise Refused(path, f"a {type_name(zone)} can't be sent as a time zone")
