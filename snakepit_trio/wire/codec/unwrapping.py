"""Restores values from msgspec's output; see :mod:`.extensions`."""

from __future__ import annotations

import array
import datetime as dt
import decimal
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from . import extensions, tables

__all__ = ["Unwrapper"]


class Unwrapper:
    """Decodes the extensions of one payload.

    Args:
        buffers: The binary values that travelled out of band, each to be used exactly once.
    """

    def __init__(self, buffers: Sequence[memoryview | bytes]) -> None:
        self._buffers: list[memoryview | bytes | None] = list(buffers)
        self._depth = 0
        self._decoder = msgspec.msgpack.Decoder(ext_hook=self.unwrap)

    def decode(self, data: bytes) -> Any:
        """Return the value of these bytes. Raises various errors for malformed bytes."""
        value = self._decoder.decode(data)
        if any(buffer is not None for buffer in self._buffers):
            raise ValueError("a buffer is not referred to")
        return value

    def unwrap(self, code: int, data: memoryview) -> Any:
        """Return the value of one extension."""
        try:
            unwrapper = _UNWRAPPERS[code]
        except KeyError:
            raise ValueError(f"extension type {code} is not known") from None
        return unwrapper(self, data)

    def _sequence(self, data: memoryview) -> list[Any]:
        # Viewed without a copy: with a copy for each level, a few megabytes of nested extensions would fill the memory.
        if self._depth > extensions.MAX_DEPTH:
            raise ValueError(f"is nested deeper than {extensions.MAX_DEPTH} levels")
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

    def _path(self, data: memoryview) -> Any:
        import pathlib

        kind, name = self._sequence(data)
        if type(kind) is not int or kind < 0 or len(name) > 4 * extensions.LONGEST_PATH:
            raise ValueError("a path that is no path, or too long")
        if kind >= 2 and extensions.PATHS[kind] != type(pathlib.Path()).__name__:
            # A path of another operating system, without access to files.
            kind -= 2
        return getattr(pathlib, extensions.PATHS[kind])(name.decode(errors="surrogateescape"))

    def _fraction(self, data: memoryview) -> Any:
        import fractions

        parts = self._sequence(data)
        if len(parts) != 2 or any(type(part) is not int for part in parts) or parts[1] <= 0:
            raise ValueError("no fraction")
        if any(part.bit_length() > 8 * extensions.LONGEST_FRACTION for part in parts):
            raise ValueError(f"a Fraction of parts with more than {extensions.LONGEST_FRACTION} bytes")
        return fractions.Fraction(*parts)

    def _address(self, data: memoryview) -> Any:
        import ipaddress

        kind, text = self._sequence(data)
        if type(kind) is not int or kind < 0 or type(text) is not str or len(text) > 256:
            raise ValueError("no address")
        return getattr(ipaddress, extensions.ADDRESSES[kind])(text)

    def _pattern(self, data: memoryview) -> Any:
        import re

        pattern, flags = self._sequence(data)
        if type(flags) is not int or flags & re.DEBUG or len(pattern) > extensions.LONGEST_PATTERN:
            raise ValueError("a regular expression that is too long, or has flags that it may not have")
        return re.compile(pattern, flags)

    def _pandas_time(self, data: memoryview) -> Any:
        import numpy
        import pandas

        kind, *rest = self._sequence(data)
        if kind == extensions.NOT_A_TIME and not rest:
            return pandas.NaT
        number, unit, *zone = rest
        if unit not in ("s", "ms", "us", "ns"):
            raise ValueError("a unit that is not known")
        if kind == extensions.PANDAS_TIMEDELTA and not zone:
            return pandas.Timedelta(numpy.timedelta64(number, unit))
        if kind != extensions.TIMESTAMP or len(zone) != 1:
            raise ValueError("a time of a kind that is not known")
        found = pandas.Timestamp(numpy.datetime64(number, unit))
        return found if zone[0] is None else found.tz_localize("UTC").tz_convert(_unzone(zone[0]))

    def _ndarray(self, data: memoryview) -> Any:
        import numpy

        descr, shape, body = self._sequence(data)
        dtype = numpy.lib.format.descr_to_dtype(_tuples(descr))
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        raw = self._bulk(body)
        found = numpy.frombuffer(raw, numpy.uint8).view(dtype) if len(raw) else numpy.empty(0, dtype)
        if not found.flags.aligned:
            # It arrived inside a message without alignment, which not every library accepts.
            found = found.copy()
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
        if name == "S":
            return numpy.bytes_(body)
        if name == "U":
            return numpy.str_(body.decode())
        dtype = numpy.dtype(name)
        if dtype.hasobject:
            raise ValueError("an object scalar")
        if dtype.itemsize != len(body):
            raise ValueError("a scalar of the wrong size")
        return numpy.frombuffer(body, dtype)[0] if body else dtype.type()


def _tuples(descr: Any) -> Any:
    """Return a dtype's description with the tuples that travelled as lists."""
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
        return dt.UTC
    if isinstance(zone, str) and zone.startswith("zone:"):
        return zoneinfo.ZoneInfo(zone[5:])
    days, seconds, microseconds = zone
    return dt.timezone(dt.timedelta(days, seconds, microseconds))


def _float_pair(unwrapper: Unwrapper, data: memoryview) -> complex:
    real, imaginary = unwrapper._sequence(data)
    return complex(real, imaginary)


def _zone(unwrapper: Unwrapper, data: memoryview) -> dt.tzinfo:
    (zone,) = unwrapper._sequence(data)
    found = _unzone(zone)
    if found is None:
        raise ValueError("no time zone")
    return found


def _decimal(unwrapper: Unwrapper, data: memoryview) -> decimal.Decimal:
    if len(data) > extensions.LONGEST_DECIMAL:
        raise ValueError("a Decimal of more than a million digits")
    return decimal.Decimal(str(data, "ascii"))


_UNWRAPPERS: dict[int, Callable[[Unwrapper, memoryview], Any]] = {
    extensions.INT: lambda _, data: int.from_bytes(data, "big", signed=True),
    extensions.TUPLE: lambda u, data: tuple(u._sequence(data)),
    extensions.SET: lambda u, data: set(u._sequence(data)),
    extensions.FROZENSET: lambda u, data: frozenset(u._sequence(data)),
    extensions.BYTEARRAY: lambda _, data: bytearray(data),
    extensions.MEMORYVIEW: lambda _, data: memoryview(bytes(data)),
    extensions.PAIRS: Unwrapper._pairs,
    extensions.BUFFER: Unwrapper._from_buffer,
    extensions.DATETIME: Unwrapper._datetime,
    extensions.DATE: lambda u, data: dt.date(*u._sequence(data)),
    extensions.TIME: Unwrapper._time,
    extensions.TIMEDELTA: lambda u, data: dt.timedelta(*u._sequence(data)),
    extensions.DECIMAL: _decimal,
    extensions.UUID: lambda _, data: uuid.UUID(bytes=bytes(data)),
    extensions.COMPLEX: _float_pair,
    extensions.PATH: Unwrapper._path,
    extensions.FRACTION: Unwrapper._fraction,
    extensions.ADDRESS: Unwrapper._address,
    extensions.PATTERN: Unwrapper._pattern,
    extensions.ZONE: _zone,
    extensions.PANDAS_TIME: Unwrapper._pandas_time,
    extensions.NDARRAY: Unwrapper._ndarray,
    extensions.NUMPY_SCALAR: Unwrapper._numpy_scalar,
    extensions.ARRAY: Unwrapper._array,
    extensions.TABLE: Unwrapper._table,
}
