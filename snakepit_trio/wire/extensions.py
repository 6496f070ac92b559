"""The MessagePack extension types that keep Python's types exact; docs/payloads.md lists them.

:func:`wrap` turns a value into one that msgspec can encode, with :class:`msgspec.msgpack.Ext` in the places of what
MessagePack has no type for; :func:`unwrap` is what a decoder calls for each of those. Nothing here runs code that a
payload names.
"""

from __future__ import annotations

import array
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import sys
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from . import tables

__all__ = ["MAX_DEPTH", "Refused", "Unwrapper", "Wrapper"]

#: Containers inside one another.
MAX_DEPTH = 100

Ext = msgspec.msgpack.Ext

_INT, _TUPLE, _SET, _FROZENSET, _BYTEARRAY, _MEMORYVIEW, _PAIRS = 1, 2, 3, 4, 5, 6, 7
_BUFFER = 8
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID, _COMPLEX = 16, 17, 18, 19, 20, 21, 22
_NDARRAY, _NUMPY_SCALAR, _ARRAY, _TABLE = 32, 33, 34, 40

_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1
_KEYS = frozenset({type(None), bool, int, float, str, bytes})

_pack = msgspec.msgpack.Encoder().encode
_UTC = dt.UTC


class Refused(Exception):
    """A value can't travel. ``path`` is where it is, ``reason`` why."""

    def __init__(self, path: str, reason: str) -> None:
        if len(path) > 200:
            path = f"{path[:100]}...{path[-80:]}"
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def type_name(value: object) -> str:
    """The class of a value for people, never its contents."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


class Wrapper:
    """Wraps one value.

    Args:
        threshold: Binary values of at least this many bytes go to ``buffers`` instead of into the data.
        limit: Bytes that the value may have; what says that it is larger is not even converted.
        convert: Turn what has no place in the domain into something that has, by the object's own means.
        marker: With ``convert``: put a map that names the type in the place of what still has none.
    """

    def __init__(self, *, threshold: int, limit: int = _LARGEST, convert: bool = False, marker: bool = False) -> None:
        self.buffers: list[memoryview] = []
        self._threshold = threshold
        self._limit = limit
        self._convert = convert
        self._marker = marker

    def wrap(self, value: Any, path: str, depth: int = 0) -> Any:
        """The value with Ext in the places of what MessagePack lacks.

        Raises:
            Refused: It, or something in it, can't travel.
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
            return Ext(_INT, value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True))
        if depth > MAX_DEPTH:
            raise Refused(path, f"is nested deeper than {MAX_DEPTH} levels, or contains itself")
        wrapper = _WRAPPERS.get(kind)
        if wrapper is not None:
            return wrapper(self, value, path, depth)
        return self._other(value, path, depth)

    # ---- containers --------------------------------------------------------------------------------

    def _list(self, value: Sequence[Any], path: str, depth: int) -> list[Any]:
        return [self.wrap(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], path: str, depth: int) -> Any:
        return Ext(_TUPLE, _pack(self._list(value, path, depth)))

    def _set(self, value: set[Any] | frozenset[Any], path: str, depth: int) -> Any:
        code = _SET if type(value) is set else _FROZENSET
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
        return Ext(_PAIRS, _pack(pairs))

    # ---- binary values -----------------------------------------------------------------------------

    def _out_of_band(self, view: memoryview) -> int:
        self.buffers.append(view)
        return len(self.buffers) - 1

    def _bulk(self, view: memoryview) -> bytes | int:
        """The bytes themselves, or the number of the buffer that they have become."""
        return bytes(view) if view.nbytes < self._threshold else self._out_of_band(view.cast("B").toreadonly())

    def _bytes(self, value: bytes, path: str, depth: int) -> Any:
        if len(value) < self._threshold:
            return value
        return Ext(_BUFFER, _pack([0, self._out_of_band(memoryview(value))]))

    def _bytearray(self, value: bytearray, path: str, depth: int) -> Any:
        if len(value) < self._threshold:
            return Ext(_BYTEARRAY, bytes(value))
        return Ext(_BUFFER, _pack([1, self._out_of_band(memoryview(value).toreadonly())]))

    def _memoryview(self, value: memoryview, path: str, depth: int) -> Any:
        try:
            if value.ndim != 1 or value.format not in ("B", "b", "c") or not value.contiguous:
                raise Refused(path, "a memoryview must be one-dimensional, contiguous and of bytes")
        except ValueError:
            raise Refused(path, "a released memoryview has no contents") from None
        value = value.cast("B") if value.format != "B" else value
        if value.nbytes < self._threshold:
            return Ext(_MEMORYVIEW, bytes(value))
        return Ext(_BUFFER, _pack([2, self._out_of_band(value.toreadonly())]))

    # ---- the standard library's values ---------------------------------------------------------------

    def _datetime(self, value: dt.datetime, path: str, depth: int) -> Any:
        body = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
        return Ext(_DATETIME, _pack([*body, value.fold, _zone(value.tzinfo, path)]))

    def _date(self, value: dt.date, path: str, depth: int) -> Any:
        return Ext(_DATE, _pack([value.year, value.month, value.day]))

    def _time(self, value: dt.time, path: str, depth: int) -> Any:
        body = [value.hour, value.minute, value.second, value.microsecond]
        return Ext(_TIME, _pack([*body, value.fold, _zone(value.tzinfo, path)]))

    def _timedelta(self, value: dt.timedelta, path: str, depth: int) -> Any:
        return Ext(_TIMEDELTA, _pack([value.days, value.seconds, value.microseconds]))

    def _decimal(self, value: decimal.Decimal, path: str, depth: int) -> Any:
        return Ext(_DECIMAL, str(value).encode())

    def _uuid(self, value: uuid.UUID, path: str, depth: int) -> Any:
        return Ext(_UUID, value.bytes)

    def _complex(self, value: complex, path: str, depth: int) -> Any:
        return Ext(_COMPLEX, _pack([value.real, value.imag]))

    # ---- everything else -----------------------------------------------------------------------------

    def _other(self, value: Any, path: str, depth: int) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if type(value) is numpy.ndarray:
                return self._ndarray(numpy, value, path)
            if isinstance(value, numpy.generic) and not isinstance(value, numpy.void | numpy.object_):
                return Ext(_NUMPY_SCALAR, _pack([value.dtype.str, value.tobytes()]))
        if type(value) is array.array:
            return Ext(_ARRAY, _pack([value.typecode, value.itemsize, self._bulk(memoryview(value).cast("B"))]))
        kind = tables.table_kind(value)
        if kind is not None:
            try:
                stream = tables.to_stream(value, kind)
            except Exception as exc:
                raise Refused(path, f"Arrow can't hold this {type_name(value)}: {str(exc)[:200]}") from exc
            return Ext(_TABLE, _pack([kind, self._bulk(stream)]))
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
        hint = "; pass its .value" if isinstance(value, enum.Enum) else ""
        raise Refused(path, f"a {type_name(value)} can't be sent{hint}")

    def _ndarray(self, numpy: Any, value: Any, path: str) -> Any:
        if value.dtype.hasobject:
            raise Refused(path, "an array of Python objects can't be sent")
        descr = numpy.lib.format.dtype_to_descr(value.dtype)
        if numpy.lib.format.descr_to_dtype(descr) != value.dtype:
            raise Refused(path, f"an array of dtype {value.dtype} can't be sent exactly")
        shape = list(value.shape)
        if not value.nbytes:
            return Ext(_NDARRAY, _pack([descr, shape, b""]))
        flat = numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)
        return Ext(_NDARRAY, _pack([descr, shape, self._bulk(memoryview(flat))]))

    def _converted(self, value: Any, path: str, depth: int) -> Any:
        base: Any
        for base in (bool, int, float, str, bytes, bytearray, dict, list, set, frozenset):
            if isinstance(value, base) and not isinstance(value, enum.Enum):
                return self.wrap(base(value), path, depth + 1)
        if isinstance(value, enum.Enum):
            return self.wrap(value.value, path, depth + 1)
        if isinstance(value, tuple) and not hasattr(value, "_asdict"):
            return self.wrap(tuple(value), path, depth + 1)
        for name in ("__array__", "model_dump", "to_dict", "_asdict", "isoformat"):
            method = getattr(type(value), name, None)
            if not callable(method):
                continue
            size = _least_size(value)
            if size > self._limit:
                raise Refused(path, f"a {type_name(value)} of at least {size} bytes; the limit is {self._limit}")
            try:
                found = method(value)
            except Exception as exc:
                raise Refused(path, f"{type_name(value)}.{name}() raised {type(exc).__name__}") from exc
            if type(found) is not type(value):
                return self.wrap(found, path, depth + 1)
        if self._marker:
            return {"__snakepit_unserializable__": True, "type": type_name(value)}
        raise Refused(path, f"a {type_name(value)} can't be sent")


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
}


def _shown(key: Any) -> str:
    """A key as it stands in a path; long ones are cut, odd ones shown by their type."""
    if type(key) is str:
        text = json.dumps(key)
        return text if len(text) <= 64 else f'{text[:60]}..."'
    if type(key) in _KEYS or type(key) is tuple:
        text = ascii(key)
        return text if len(text) <= 64 else f"{text[:60]}..."
    return f"<{type_name(key)}>"


def _least_size(value: Any) -> int:
    """How many bytes a value will have at least, as far as it says so without being converted: each item takes one."""
    found = 0
    for ask in (lambda: value.nbytes, lambda: math.prod(value.shape), lambda: len(value)):
        try:
            size = ask()
        except Exception:
            continue  # It does not say.
        if isinstance(size, int):
            found = max(found, size)
    return found


def _record(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass, an attrs class or a msgspec Struct."""
    cls = type(value)
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in cls.__struct_fields__}
    if dataclasses.is_dataclass(cls):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(cls)}
    attributes = getattr(cls, "__attrs_attrs__", None)
    if attributes is not None:
        return {attribute.name: getattr(value, attribute.name) for attribute in attributes}
    return None


def _zone(zone: dt.tzinfo | None, path: str) -> str | list[int] | None:
    if zone is None:
        return None
    if zone is _UTC:
        return "UTC"
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None)
        if dt.timezone(offset, zone.tzname(None)) == zone and zone.tzname(None) == dt.timezone(offset).tzname(None):
            return [offset.days, offset.seconds, offset.microseconds]
        raise Refused(path, "a timezone with a name of its own can't be sent exactly")
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return f"zone:{zone.key}"
    raise Refused(path, f"a {type_name(zone)} can't be sent as a time zone")


class Unwrapper:
    """Takes apart the extensions of one payload.

    Args:
        buffers: The binary values that travelled out of band, each to be used exactly once.
    """

    def __init__(self, buffers: Sequence[memoryview | bytes]) -> None:
        self._buffers: list[memoryview | bytes | None] = list(buffers)
        self._depth = 0
        self._decoder = msgspec.msgpack.Decoder(ext_hook=self.unwrap)

    def decode(self, data: bytes) -> Any:
        """The value that these bytes hold. Raises all kinds of errors for bytes that hold none."""
        value = self._decoder.decode(data)
        if any(buffer is not None for buffer in self._buffers):
            raise ValueError("a buffer is not referred to")
        return value

    def unwrap(self, code: int, data: memoryview) -> Any:
        """The value of one extension."""
        try:
            unwrapper = _UNWRAPPERS[code]
        except KeyError:
            raise ValueError(f"extension type {code} is not known") from None
        return unwrapper(self, data)

    def _sequence(self, data: memoryview) -> list[Any]:
        # Looked at where it lies: with a copy for each level, a few megabytes of nested extensions would fill the memory.
        if self._depth > MAX_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
        self._depth += 1
        try:
            value = self._decoder.decode(data)
        finally:
            self._depth -= 1
        if type(value) is not list:
            raise ValueError("an extension does not hold a sequence")
        return value

    def _pairs(self, data: memoryview) -> dict[Any, Any]:
        pairs = self._sequence(data)
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a map has a key twice")
        return found

    def _buffer(self, index: Any) -> memoryview:
        if type(index) is not int or not 0 <= index < len(self._buffers):
            raise ValueError("a buffer is referred to that is not there")
        buffer, self._buffers[index] = self._buffers[index], None
        if buffer is None:
            raise ValueError("a buffer is referred to twice")
        return memoryview(buffer)

    def _from_buffer(self, data: memoryview) -> Any:
        kind, index = self._sequence(data)
        view = self._buffer(index)
        if kind == 0:
            return bytes(view)
        if kind == 1:
            return bytearray(view)
        if kind == 2:
            return view.toreadonly()
        raise ValueError("a buffer of a kind that is not known")

    def _datetime(self, data: memoryview) -> dt.datetime:
        *body, fold, zone = self._sequence(data)
        return dt.datetime(*body).replace(tzinfo=_unzone(zone), fold=fold)

    def _time(self, data: memoryview) -> dt.time:
        *body, fold, zone = self._sequence(data)
        return dt.time(*body).replace(tzinfo=_unzone(zone), fold=fold)

    def _ndarray(self, data: memoryview) -> Any:
        import numpy

        descr, shape, body = self._sequence(data)
        dtype = numpy.lib.format.descr_to_dtype(_tuples(descr))
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        raw = self._bulk(body)
        found = numpy.frombuffer(raw, numpy.uint8).view(dtype) if len(raw) else numpy.empty(0, dtype)
        found = found.reshape(shape)
        found.flags.writeable = False
        return found

    def _bulk(self, body: Any) -> memoryview:
        return memoryview(body) if type(body) is bytes else self._buffer(body)

    def _array(self, data: memoryview) -> array.array[Any]:
        code, size, body = self._sequence(data)
        found = array.array(code)
        if found.itemsize != size:
            raise ValueError("an array whose items have another size here")
        found.frombytes(self._bulk(body))
        return found

    def _table(self, data: memoryview) -> Any:
        kind, body = self._sequence(data)
        return tables.from_stream(kind, self._bulk(body))

    def _numpy_scalar(self, data: memoryview) -> Any:
        import numpy

        name, body = self._sequence(data)
        dtype = numpy.dtype(name)
        if dtype.hasobject:
            raise ValueError("an object scalar")
        if dtype.itemsize != len(body):
            raise ValueError("a scalar of the wrong size")
        return numpy.frombuffer(body, dtype)[0] if body else dtype.type()


def _tuples(descr: Any) -> Any:
    """A dtype's description with the tuples that travelled as lists."""
    if isinstance(descr, list):
        return [tuple(_inner(part) for part in field) for field in descr]
    return descr


def _inner(part: Any) -> Any:
    if isinstance(part, list):
        if part and all(type(item) is int for item in part):
            return tuple(part)
        if len(part) == 2 and all(type(item) is str for item in part):
            return tuple(part)
        return _tuples(part)
    return part


def _unzone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    if zone == "UTC":
        return _UTC
    if isinstance(zone, str) and zone.startswith("zone:"):
        return zoneinfo.ZoneInfo(zone[5:])
    days, seconds, microseconds = zone
    return dt.timezone(dt.timedelta(days, seconds, microseconds))


def _float_pair(unwrapper: Unwrapper, data: memoryview) -> complex:
    real, imaginary = unwrapper._sequence(data)
    return complex(real, imaginary)


def _decimal(unwrapper: Unwrapper, data: memoryview) -> decimal.Decimal:
    if len(data) > 1 << 20:
        raise ValueError("a Decimal of more than a million digits")
    return decimal.Decimal(str(data, "ascii"))


_UNWRAPPERS: dict[int, Callable[[Unwrapper, memoryview], Any]] = {
    _INT: lambda _, data: int.from_bytes(data, "big", signed=True),
    _TUPLE: lambda u, data: tuple(u._sequence(data)),
    _SET: lambda u, data: set(u._sequence(data)),
    _FROZENSET: lambda u, data: frozenset(u._sequence(data)),
    _BYTEARRAY: lambda _, data: bytearray(data),
    _MEMORYVIEW: lambda _, data: memoryview(bytes(data)),
    _PAIRS: Unwrapper._pairs,
    _BUFFER: Unwrapper._from_buffer,
    _DATETIME: Unwrapper._datetime,
    _DATE: lambda u, data: dt.date(*u._sequence(data)),
    _TIME: Unwrapper._time,
    _TIMEDELTA: lambda u, data: dt.timedelta(*u._sequence(data)),
    _DECIMAL: _decimal,
    _UUID: lambda _, data: uuid.UUID(bytes=bytes(data)),
    _COMPLEX: _float_pair,
    _NDARRAY: Unwrapper._ndarray,
    _NUMPY_SCALAR: Unwrapper._numpy_scalar,
    _ARRAY: Unwrapper._array,
    _TABLE: Unwrapper._table,
}
