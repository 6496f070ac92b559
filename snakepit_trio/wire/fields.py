"""The fields of a protobuf message. https://protobuf.dev/programming-guides/encoding/"""

from __future__ import annotations

from typing import TypeAlias

from .frames import MOST_BUFFERS, FrameError

__all__ = ["MOST_FIELDS", "MOST_PARTS", "Field", "read_fields", "read_varint"]

_U64 = (1 << 64) - 1
#: The largest number of fields of one message, without nested ones.
MOST_FIELDS = MOST_BUFFERS + 1024
_FIELDS = range(MOST_FIELDS)
#: The largest number of fields of one message, including nested ones.
MOST_PARTS = 4096

Field: TypeAlias = "int | bytes"


def read_fields(data: bytes, position: int, end: int, large: int = 1 << 63) -> list[tuple[int, Field]]:
    """Return the fields of one message as (tag, value): an int for a varint, bytes for a length-delimited field.

    Fields of at least ``large`` bytes are memoryviews of ``data``, which may be one itself. Fixed-width fields and
    groups are skipped, because no message here has them.

    Raises:
        FrameError: The bytes are malformed, or have too many fields.
    """
    out: list[tuple[int, Field]] = []
    whole = type(data) is bytes
    for _ in _FIELDS:
        if position >= end:
            break
        tag = data[position]
        position += 1
        if tag > 127:
            tag, position = read_varint(data, position - 1, end)
        kind = tag & 7
        if kind == 0 or kind == 2:
            if position >= end:
                raise FrameError("a field is cut off")
            value = data[position]
            position += 1
            if value > 127:
                value, position = read_varint(data, position - 1, end)
            if kind == 0:
                out.append((tag, value))
                continue
            stop = position + value
            if stop > end:
                raise FrameError("a field is longer than its message")
            if value < large:
                out.append((tag, data[position:stop] if whole else bytes(data[position:stop])))
            else:
                out.append((tag, memoryview(data)[position:stop]))  # type: ignore[arg-type]
            position = stop
        elif kind == 5:
            position += 4
        elif kind == 1:
            position += 8
        else:
            raise FrameError(f"wire type {kind} is not used by this protocol")
        if tag < 8:
            raise FrameError("field number 0")
    if position < end:
        raise FrameError(f"a message has more than {MOST_FIELDS} fields")
    if position != end:
        raise FrameError("a field is cut off")
    return out


def read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the number at a position, and its end.

    Raises:
        FrameError: The number is malformed.
    """
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise FrameError("a varint is cut off or too long")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _U64, position
        shift += 7
