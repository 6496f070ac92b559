"""The MessagePack extension types that keep Python's types exact; docs/payloads.md lists them.

:mod:`.wrapping` converts a value to one that msgspec can encode, with :class:`msgspec.msgpack.Ext` for types that
MessagePack lacks; a decoder calls :mod:`.unwrapping` for each of those. No code named by a payload ever runs.
"""

from __future__ import annotations

#: The largest depth of nested containers.
MAX_DEPTH = 100

INT, TUPLE, SET, FROZENSET, BYTEARRAY, MEMORYVIEW, PAIRS = 1, 2, 3, 4, 5, 6, 7
BUFFER = 8
DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID, COMPLEX = 16, 17, 18, 19, 20, 21, 22
PATH, FRACTION, ADDRESS, PATTERN, ZONE = 23, 24, 25, 26, 27
NDARRAY, NUMPY_SCALAR, ARRAY, PANDAS_TIME, TABLE = 32, 33, 34, 35, 40
#: The largest number of characters of a Decimal's text, about a million digits.
LONGEST_DECIMAL = 1 << 20
#: The largest number of bytes of a Fraction's numerator or denominator, because reducing it takes quadratic time.
LONGEST_FRACTION = 1 << 15
#: The largest number of characters of a path, and of a regular expression, which the receiver compiles.
LONGEST_PATH, LONGEST_PATTERN = 1 << 16, 1 << 14
#: The classes of a path and of an address, by their index.
PATHS = ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath")
ADDRESSES = ("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface")
#: The kinds of pandas' own values.
TIMESTAMP, PANDAS_TIMEDELTA, NOT_A_TIME = 0, 1, 2
