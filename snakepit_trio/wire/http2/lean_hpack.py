"""HPACK for headers that are the same in every request and answer: encoded once, and decoded once.

Encoding changes no HPACK table on either side. Received blocks may be anything; a block is not decoded again only if it
begins with one of the last blocks and would mean the same again.

https://www.rfc-editor.org/rfc/rfc7541
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpack import Decoder, HeaderTuple
from hpack.exceptions import OversizedHeaderListError

__all__ = ["FixedHeaders", "RememberingDecoder", "literal"]

#: Headers that are complete in the static table.
_STATIC = {
    (":status", "200"): b"\x88",
    (":method", "POST"): b"\x83",
    (":scheme", "http"): b"\x86",
    (":scheme", "https"): b"\x87",
}
#: Never put into a table, by any intermediary either (RFC 7541, 7.1.3).
_SECRET = frozenset({"authorization"})
#: The size of a header beside its text (RFC 9113, 6.5.2).
_ENTRY = 32
#: The number of remembered blocks of one peer.
_REMEMBERED = 4


def literal(name: str, value: str) -> bytes:
    """Encode one header that goes into no table, in ASCII, with its name in lower case."""
    kind = b"\x10" if name in _SECRET else b"\0"
    return b"%b%b%b" % (kind, _text(name), _text(value))


def _text(text: str) -> bytes:
    data = text.encode("ascii")
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    head = bytearray(b"\x7f")
    size -= 127
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + data


class FixedHeaders(tuple[tuple[str, str], ...]):  # noqa: SLOT001 - a tuple can have none
    """Constant headers with their encoded block.

    Args:
        headers: Names and values in ASCII, names in lower case.
    """

    block: bytes

    def __new__(cls, *headers: tuple[str, str]) -> FixedHeaders:
        made = super().__new__(cls, headers)
        made.block = b"".join(_STATIC.get(item) or literal(*item) for item in headers)
        return made

    def and_one(self, name: str, value: str) -> FixedHeaders:
        """Return these headers and one more."""
        made = tuple.__new__(FixedHeaders, (*self, (name, value)))
        made.block = self.block + literal(name, value)
        return made


class RememberingDecoder(Decoder):
    """HPACK's decoder, which remembers the last blocks that changed no table.

    There are a few blocks for each kind of message, and they alternate: the headers and the trailers of an answer. A
    ``grpc-timeout`` at the end of a block is not remembered with it, because it differs between a client's requests.
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        # In the order of arrival, for one state of the table: a new entry of the table goes first, and a removal shortens
        # it.
        self._blocks: dict[bytes, list[HeaderTuple]] = {}
        self._table: tuple[Any, int, int] = (None, 0, 0)
        # The last block that came before a timeout.
        self._before = b""
        # The number of bytes of a block from the beginning of its last literal.
        self._tail = 0

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """As hpack's own."""
        if not raw:
            return super().decode(data, raw)
        table = self._state()
        if not _alike(table, self._table):
            self._table = table
            self._blocks.clear()
        known = self._blocks.get(data)
        if known is not None:
            return list(known)
        known = self._blocks.get(self._before)
        if known is not None and data.startswith(self._before):
            rest = data[len(self._before) :]
            # A change of the table's size is allowed only at a block's beginning.
            if rest[0] & 0xE0 != 0x20:
                more = list(super().decode(rest, raw))
                if _size(known) + _size(more) > self.max_header_list_size:
                    raise OversizedHeaderListError(
                        f"A header list larger than {self.max_header_list_size} has been received"
                    )
                return [*known, *more]
        self._tail = 0
        found = list(super().decode(data, raw))
        if _alike(table, self._state()):
            block, headers = bytes(data), found
            if self._tail and found[-1][0] == b"grpc-timeout":
                block, headers = block[: -self._tail], found[:-1]
                self._before = block
            if len(self._blocks) >= _REMEMBERED:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[block] = headers
        return list(found)

    def _state(self) -> tuple[Any, int, int]:
        entries = self.header_table.dynamic_entries
        return entries[0] if entries else None, len(entries), self.header_table.maxsize

    def _decode_literal_no_index(self, data: bytes | memoryview[int]) -> tuple[HeaderTuple, int]:
        header, consumed = super()._decode_literal_no_index(data)
        self._tail = consumed if consumed == len(data) else 0
        return header, consumed


def _alike(one: tuple[Any, int, int], other: tuple[Any, int, int]) -> bool:
    return one[0] is other[0] and one[1:] == other[1:]


def _size(headers: Iterable[HeaderTuple]) -> int:
    return sum(len(name) + len(value) + _ENTRY for name, value in headers)
