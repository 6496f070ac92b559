"""What can't travel, and where it is said to be: the same from both sides."""

from __future__ import annotations

import array
import collections
import datetime as dt
import enum
import fractions
import os
import pathlib
import re
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from snakepit_trio.errors import InvalidParameter, InvalidPayload
from snakepit_trio.wire import codec, frames
from snakepit_trio.wire.codec import extensions
from snakepit_trio.wire.codec.extensions import MAX_DEPTH


class Colour(enum.Enum):
    RED = object()


class Text(str):
    __slots__ = ()


class Zone(dt.tzinfo):
    """One of the program's own."""


class Stubborn:
    def to_dict(self) -> dict[str, Any]:
        raise RuntimeError("not today")


class Huge:
    """What says that it is large is not converted to find out."""

    nbytes = 1 << 40

    def __array__(self) -> Any:
        raise AssertionError("was converted")


class Endless:
    def __len__(self) -> int:
        return 1 << 40

    def to_dict(self) -> Any:
        raise AssertionError("was converted")


def deep(levels: int, around: Callable[[Any], Any]) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = around(value)
    return value


circular: list[Any] = []
circular.append(circular)
released = memoryview(b"abc")
released.release()

#: Value, path below the root, words of the reason; what neither side sends.
NEVER = [
    (object(), "", "object"),
    ({"a": [1, (2, {3: object()})]}, '["a"][1][1][3]', "object"),
    ([{"k": frozenset({lambda: 0})}], '[0]["k"][0]', "function"),
    ({(1, 2): threading.Lock()}, "[(1, 2)]", "lock"),
    ({"x" * 100: object()}, f'["{"x" * 59}..."]', "object"),
    ("\ud800", "", "surrogate"),
    (["ok", {"a\udfff": 1}], '[1]["a\\udfff"]', "surrogate"),
    (circular, None, "nested deeper"),
    (deep(MAX_DEPTH + 2, lambda v: [v]), None, "nested deeper"),
    (deep(MAX_DEPTH + 2, lambda v: (v,)), None, "nested deeper"),
    (deep(100_000, lambda v: {"a": v}), None, "nested deeper"),
    (iter([1]), "", "iterator"),
    (range(3), "", "range"),
    (fractions.Fraction(1, 1 << (1 << 18)), "", "32768 bytes"),
    (pathlib.Path("x" * 70_000), "", "65536 characters"),
    (pathlib.Path("/\ud800"), "", "surrogate"),
    (re.compile("x" * 20_000), "", "16384 characters"),
    (type("Place", (pathlib.PurePosixPath,), {})("x"), "", "Place"),
    (Colour.RED, "", "object"),
    (memoryview(array.array("i", [1, 2])), "", "memoryview"),
    (memoryview(b"abcdef")[::2], "", "memoryview"),
    (released, "", "memoryview"),
    (np.array([object()], dtype=object), "", "objects"),
    ([np.ma.masked_array([1, 2], [0, 1])], "[0]", ".filled()"),
    (np.str_("\ud800"), "", "surrogate"),
    (dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "mine")), "", "timezone"),
    (dt.time(1, tzinfo=Zone()), "", "time zone"),
    (Exception("no"), "", "Exception"),
]
#: What only arguments may not be, because a result has means of its own.
ONLY_ARGUMENTS = [
    ([Text("a")], "[0]", "Text"),
    ({"m": np.rec.array([(1,)], dtype=[("a", "i4")])}, '["m"]', "numpy.asarray"),
    ({"a": collections.OrderedDict(a=1)}, '["a"]', "OrderedDict"),
]
ONLY_RESULTS = [
    ([Stubborn()], "[0]", "RuntimeError"),
    ({"a": Huge()}, '["a"]', "at least 1099511627776 bytes"),
    ([Endless()], "[0]", "at least 1099511627776 bytes"),
]


@pytest.mark.parametrize(("value", "path", "words"), [*NEVER, *ONLY_ARGUMENTS])
def test_an_argument_that_is_refused(value: Any, path: str | None, words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        codec.encode(value)
    assert words in caught.value.details["reason"]
    if path is not None:
        assert caught.value.details["path"] == f"params{path}"
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(("value", "path", "words"), [*NEVER, *ONLY_RESULTS])
def test_a_result_that_is_refused(value: Any, path: str | None, words: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        codec.encode_result(value)
    assert words in caught.value.details["reason"]
    if path is not None:
        assert caught.value.details["path"] == f"result{path}"


def test_a_marker_stands_for_what_has_no_form_and_for_nothing_else() -> None:
    def sent(value: Any) -> Any:
        return codec.decode(codec.encode_result(value, unserializable="marker"))

    marker = {"__snakepit_unserializable__": True, "type": "object"}
    assert sent([1, {"a": object()}]) == [1, {"a": marker}]
    with pytest.raises(InvalidPayload):
        sent([Stubborn()])
    with pytest.raises(InvalidPayload):
        sent("\ud800")


def nested_extensions(levels: int, body: bytes) -> bytes:
    """A tuple in a tuple in a tuple, each an extension inside the one before."""
    data = body
    for _ in range(levels):
        data = b"\xc9" + (len(data) + 1).to_bytes(4, "big") + b"\x02" + b"\x91" + data
    return data


def test_nested_extensions_are_bounded_and_not_copied_for_each_level() -> None:
    import tracemalloc

    assert codec.decode(frames.Payload(2, nested_extensions(MAX_DEPTH, b"\x00")))
    for levels in (MAX_DEPTH + 2, 900, 5000):
        with pytest.raises(InvalidPayload):
            codec.decode(frames.Payload(2, nested_extensions(levels, b"\x00")))
    filling = msgspec.msgpack.encode(b"x" * 1_000_000)
    payload = frames.Payload(2, nested_extensions(MAX_DEPTH - 1, filling))
    tracemalloc.start()
    codec.decode(payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    "header", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
)
def test_a_header_that_promises_gigabytes_allocates_nothing(header: bytes) -> None:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(InvalidPayload):
        codec.decode(frames.Payload(2, header + b"\xc0" * 10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


class Wrapped:
    """Says by its own means what it is."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def to_dict(self) -> Any:
        return self.value


class Circle:
    def to_dict(self) -> Any:
        return Circle()


def test_what_is_converted_by_its_own_means() -> None:
    class Number(int): ...

    class Words(list[Any]): ...

    convert = {"what": "result", "limit": 1 << 20}
    for value, wanted in (
        (Wrapped({"a": Wrapped([1])}), {"a": [1]}), (Number(3), 3), (Words([Number(1)]), [1]), (Colour2.BLUE, "blue"),
        (collections.OrderedDict(a=1), {"a": 1}),
    ):  # fmt: skip
        found = codec.decode(codec.encode_result(value, **convert))  # type: ignore[arg-type]
        assert found == wanted and type(found) is type(wanted)
    # What converts to itself has no end.
    with pytest.raises(InvalidPayload, match="Circle can't be sent"):
        codec.encode_result(Circle(), **convert)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (extensions.PATH, [9, b"x"]), (extensions.PATH, [-1, b"x"]), (extensions.PATH, [0, "x"]), (extensions.PATH, [0]),
        (extensions.PATH, [0, b"x" * 300_000]), (extensions.FRACTION, [1, 0]), (extensions.FRACTION, [1, -2]),
        (extensions.FRACTION, [1.5, 2]), (extensions.FRACTION, [1]), (extensions.ADDRESS, [0, "1.2.3"]),
        (extensions.ADDRESS, [0, 5]), (extensions.ADDRESS, [-1, "1.2.3.4"]), (extensions.ADDRESS, [7, "1.2.3.4"]),
        (extensions.PATTERN, ["(", 0]), (extensions.PATTERN, ["a", 128]), (extensions.PATTERN, ["a", "x"]),
        (extensions.PATTERN, ["a" * 20_000, 0]), (extensions.PATTERN, ["a", 1 << 40]), (extensions.ZONE, [None]),
        (extensions.ZONE, ["zone:../x"]), (extensions.ZONE, []), (extensions.PANDAS_TIME, [2, 0]),
        (extensions.PANDAS_TIME, [0, 1, "D", None]), (extensions.PANDAS_TIME, [1, 1, "s", None]),
        (extensions.PANDAS_TIME, [5, 1, "s", None]), (extensions.PANDAS_TIME, []),
    ],
)  # fmt: skip
def test_an_extension_that_holds_no_value_of_its_kind(code: int, body: list[Any]) -> None:
    data = msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(body)))
    with pytest.raises(InvalidPayload):
        codec.decode(frames.Payload(frames.MSGPACK, data))


def test_a_path_of_another_operating_system() -> None:
    here, there = ("PosixPath", "WindowsPath") if os.name == "posix" else ("WindowsPath", "PosixPath")
    for name, wanted in ((here, here), (there, f"Pure{there}")):
        body = msgspec.msgpack.encode([extensions.PATHS.index(name), b"a/b"])
        found = codec.decode(
            frames.Payload(frames.MSGPACK, msgspec.msgpack.encode(msgspec.msgpack.Ext(extensions.PATH, body)))
        )
        assert type(found).__name__ == wanted and found.name == "b"


class Colour2(enum.Enum):
    BLUE = "blue"
