"""The MessagePack extension types that keep Python's types exact: their codes; docs/payloads.md lists them.

:mod:`.wrapping` turns a value into one that msgspec can encode, with :class:`msgspec.msgpack.Ext` in the places of what
MessagePack has no type for; :mod:`.unwrapping` is what a decoder calls for each of those. Nothing there runs code that a
payload names.
"""

from __future__ import annotations

#: Containers inside one another.
MAX_DEPTH = 100

INT, TUPLE, SET, FROZENSET, BYTEARRAY, MEMORYVIEW, PAIRS = 1, 2, 3, 4, 5, 6, 7
BUFFER = 8
DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID, COMPLEX = 16, 17, 18, 19, 20, 21, 22
PATH, FRACTION, ADDRESS, PATTERN, ZONE = 23, 24, 25, 26, 27
NDARRAY, NUMPY_SCALAR, ARRAY, PANDAS_TIME, TABLE = 32, 33, 34, 35, 40
#: Characters of a Decimal's text, at most, about a million digits.
LONGEST_DECIMAL = 1 << 20
#: Bytes of a Fraction's numerator or denominator: to reduce it takes time that grows with the square.
LONGEST_FRACTION = 1 << 15
#: Characters of a path, and of a regular expression, which the other side compiles.
LONGEST_PATH, LONGEST_PATTERN = 1 << 16, 1 << 14
#: The classes of a path and of an address, each by its place.
PATHS = ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath")
ADDRESSES = ("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface")
#: What a value of pandas' own is.
TIMESTAMP, PANDAS_TIMEDELTA, NOT_A_TIME = 0, 1, 2
