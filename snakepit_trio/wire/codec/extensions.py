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
NDARRAY, NUMPY_SCALAR, ARRAY, TABLE = 32, 33, 34, 40
#: Characters of a Decimal's text, at most, about a million digits.
LONGEST_DECIMAL = 1 << 20
