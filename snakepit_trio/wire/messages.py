"""The library's messages, read from an untrusted peer.

The library creates an object for each nested message, which costs a hundred times the few bytes of an empty one. So the
fields are counted first.
"""

from __future__ import annotations

from typing import Any, TypeVar

import betterproto2

from snakepit_trio import _private_names

from .fields import MOST_PARTS, read_fields
from .frames import LARGE, FrameError

__all__ = ["MOST_PARTS", "read_message"]


_private_names.require("betterproto2")

M = TypeVar("M", bound=betterproto2.Message)


def read_message(kind: type[M], data: bytes) -> M:
    """Decode a message of this class.

    Raises:
        Exception: The bytes are malformed, or have too many fields. The library raises various exceptions.
    """
    if _count(kind, data, MOST_PARTS) < 0:
        raise FrameError(f"a message has more than {MOST_PARTS} parts")
    return kind.parse(data)


def _count(kind: Any, data: bytes, left: int) -> int:
    """Return how many of ``left`` fields remain after these bytes; negative if there are more."""
    # The library treats truncated fields as missing; this does not.
    fields = read_fields(data, 0, len(data), LARGE)
    left -= len(fields)
    known = kind._betterproto
    for tag, value in fields:
        if left < 0:
            break
        name = known.field_name_by_number.get(tag >> 3)
        if name is None or isinstance(value, int):
            continue
        what = known.meta_by_field_name[name].proto_type
        if what == betterproto2.TYPE_MESSAGE:
            left = _count(known.cls_by_field[name], value, left)
        elif what == betterproto2.TYPE_MAP:
            left -= len(read_fields(value, 0, len(value), LARGE))
    return left
