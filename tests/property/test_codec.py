"""What the codec takes comes out equal and of the same type; what it refuses, it names."""

from __future__ import annotations

import datetime as dt
import decimal
import ipaddress
import math
import os
import pathlib
import re
import struct
import zoneinfo
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snakepit_trio.errors import InvalidParameter, InvalidPayload
from snakepit_trio.wire import codec, frames
from snakepit_trio.wire.codec import extensions

Ext = msgspec.msgpack.Ext
fixed = st.builds(
    dt.timezone,
    st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(lambda d: d - d % dt.timedelta(seconds=1)),
)
zones = st.none() | st.just(dt.UTC) | fixed | st.sampled_from(["Europe/Paris", "Asia/Kolkata"]).map(zoneinfo.ZoneInfo)
text = st.text(st.characters(exclude_categories=["Cs"]))
literals = st.sampled_from(["a", "(b|c)+", r"\d{2,3}", "[^x]", "(?P<n>y)", "\u20ac", "(?i)z"])
patterns = st.builds(
    lambda parts, flags: re.compile("".join(sorted(parts, key=len, reverse=True)), flags),
    st.lists(literals, max_size=4, unique=True).filter(lambda parts: "(?i)z" not in parts or len(parts) == 1),
    st.sampled_from([0, re.IGNORECASE, re.ASCII | re.MULTILINE, re.VERBOSE | re.DOTALL]),
) | st.builds(re.compile, st.sampled_from([b"a", rb"\w+"]), st.sampled_from([0, re.LOCALE]))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | text
    | st.binary(max_size=50)
    | st.binary(max_size=50).map(bytearray)
    | st.dates()
    | st.datetimes(timezones=zones)
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
    | st.fractions()
    | st.ip_addresses()
    | st.ip_addresses().map(ipaddress.ip_network)
    | st.builds(ipaddress.IPv4Interface, st.tuples(st.ip_addresses(v=4), st.integers(0, 32)))
    | st.builds(ipaddress.IPv6Interface, st.tuples(st.ip_addresses(v=6), st.integers(0, 128)))
    | zones.filter(bool)
    | st.builds(pathlib.PurePosixPath, text.map(lambda name: name.replace("\0", "")))
    | st.builds(pathlib.PureWindowsPath, text, text)
    | st.binary(max_size=20).map(os.fsdecode).map(pathlib.Path)
    | patterns
)
keys = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | text
    | st.binary(max_size=5)
    | st.tuples(st.integers(), text)
)
hashables = st.integers() | text | st.tuples(st.integers(), text) | st.frozensets(st.integers(), max_size=3)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.sets(hashables, max_size=4)
        | st.frozensets(hashables, max_size=4)
        | st.dictionaries(keys, inner, max_size=5)
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Equal and of the same type, all the way down; nan equals itself, 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, set | frozenset):
        return a == b and {type(x) for x in a} == {type(x) for x in b}
    if isinstance(a, dt.datetime | dt.time):
        return repr(a) == repr(b)
    if type(a).__name__ == "Decimal":
        return str(a) == str(b)
    return bool(a == b)


@given(values)
def test_round_trip(value: Any) -> None:
    found = codec.decode(codec.encode(value))
    assert same(value, found), (value, found)


@given(st.lists(st.binary(max_size=40) | st.binary(max_size=40).map(bytearray), max_size=6), st.integers(0, 40))
def test_round_trip_out_of_band(value: list[Any], threshold: int) -> None:
    payload = codec.encode(value, buffer_threshold=threshold)
    assert len(payload.buffers) == sum(len(item) >= threshold for item in value)
    assert same(value, codec.decode(payload))


@given(
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)), st.sampled_from([0, 1 << 16])
)
def test_arrays(array: np.ndarray[Any, Any], threshold: int) -> None:
    found = codec.decode(codec.encode(array, buffer_threshold=threshold))
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    assert not found.flags.writeable


@pytest.mark.parametrize(
    "dtype",
    [
        [("a", "i4"), ("b", "f8")],
        [("a", "i4", (2,)), ("b", "f8", (2, 3))],
        [("a", [("x", "i2"), ("y", "S3")]), ("b", "u1")],
        [("a", [("x", "i2"), ("y", [("z", "f4", (1,))])], (2,))],
        [(("title", "a"), "i4"), ("b", "<M8[ns]")],
        np.dtype({"names": ["a", "b"], "formats": ["i1", "i4"], "offsets": [0, 4], "itemsize": 12}),
        "<M8[us]", "<m8[s]", "S5", "<U2", ">i4",
    ],
    ids=str,
)  # fmt: skip
def test_types_of_arrays(dtype: Any) -> None:
    for shape in ((0,), (3,), (2, 1)):
        array = np.zeros(shape, dtype)
        found = codec.decode(codec.encode(array))
        assert (found.dtype, found.shape) == (array.dtype, shape)
        assert found.tobytes() == array.tobytes()


moments = st.integers(-(2**62), 2**62)


@given(moments, st.sampled_from(["s", "ms", "us", "ns"]), zones, st.sampled_from([1, 10**3, 10**6, 10**9]))
def test_times_of_pandas(number: int, unit: str, zone: dt.tzinfo | None, scale: int) -> None:
    if unit != "ns":
        number //= 10**9 * scale
    delta = pd.Timedelta(np.timedelta64(number, unit))
    (found,) = codec.decode(codec.encode([delta]))
    assert (type(found), found, found.unit) == (pd.Timedelta, delta, delta.unit)
    try:
        stamp = pd.Timestamp(np.datetime64(number, unit))
        if zone is not None:
            stamp = stamp.tz_localize("UTC").tz_convert(zone)
        repr(stamp)
    except (OverflowError, ValueError):
        return  # No zone has an offset then.
    (found,) = codec.decode(codec.encode([stamp]))
    assert (type(found), repr(found), found.unit, found.fold) == (pd.Timestamp, repr(stamp), stamp.unit, stamp.fold)
    assert found.asm8 == stamp.asm8


def test_no_time_of_pandas_and_numpy() -> None:
    assert codec.decode(codec.encode([pd.NaT]))[0] is pd.NaT
    for value in (np.datetime64("NaT"), np.datetime64("NaT", "s"), np.timedelta64("NaT", "D")):
        found = codec.decode(codec.encode([value]))[0]
        assert (type(found), found.dtype) == (type(value), value.dtype) and np.isnat(found)


def test_numpys_text_and_bytes_keep_the_zeros_at_their_end() -> None:
    for value in (np.bytes_(b"a\0"), np.bytes_(b""), np.str_("\u00fc\0"), np.str_("")):
        found = codec.decode(codec.encode([value]))[0]
        assert type(found) is type(value)
        assert len(found) == len(value) and found == value


class Odd:
    """Nothing that the codec knows."""

    def __repr__(self) -> str:
        raise AssertionError("repr of a value is never asked for")


@given(st.lists(st.integers(0, 3) | st.sampled_from(["a", "b c", '"', "\u20ac"]), min_size=1, max_size=8))
def test_the_path_of_what_is_refused(path: list[Any]) -> None:
    value: Any = Odd()
    shown = ""
    import json

    for part in reversed(path):
        if isinstance(part, int):
            value = [0] * part + [value]
            shown = f"[{part}]{shown}"
        else:
            value = {part: value}
            shown = f"[{json.dumps(part)}]{shown}"
    with pytest.raises(InvalidParameter) as caught:
        codec.encode(value)
    assert caught.value.details["path"] == f"params{shown}"
    assert "Odd" in caught.value.message


@given(values, st.data())
def test_mutated_payloads_are_refused_or_values(value: Any, data: st.DataObject) -> None:
    payload = codec.encode(value, buffer_threshold=8)
    raw = bytearray(payload.data)
    for _ in range(data.draw(st.integers(1, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for mutated in (bytes(raw), bytes(raw[:cut])):
        try:
            codec.decode(frames.Payload(payload.encoding, mutated, payload.buffers))
        except InvalidPayload:
            pass


@given(st.binary(max_size=200), st.integers(0, 127))
def test_garbage_is_refused_or_a_value(raw: bytes, encoding: int) -> None:
    try:
        codec.decode(frames.Payload(encoding, raw))
    except InvalidPayload:
        pass


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=15,
)


@given(json_values)
def test_json_round_trip(value: Any) -> None:
    found = codec.decode(codec.encode(value, encoding=frames.JSON))
    assert found == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", (1,), {1: 2}, 2**64, "\ud800", {"\ud800": 1}])
def test_json_refuses_what_it_has_no_type_for(value: Any) -> None:
    with pytest.raises(InvalidParameter):
        codec.encode(value, encoding=frames.JSON)


def test_no_more_values_travel_beside_the_data_than_a_payload_may_have_buffers() -> None:
    value = [bytes([number % 256]) * 10 for number in range(frames.MOST_BUFFERS + 50)]
    value += [bytearray(10), memoryview(bytes(10)), (bytes(10),)]  # type: ignore[list-item]
    payload = codec.encode(value, buffer_threshold=10)
    assert len(payload.buffers) == frames.MOST_BUFFERS
    assert codec.decode(payload) == value


def test_the_longest_numbers() -> None:
    """What one side may not read, the other does not send."""
    most = 1 << 20
    digits = "1" * most
    assert codec.decode(codec.encode(decimal.Decimal(digits))) == decimal.Decimal(digits)
    with pytest.raises(InvalidParameter, match="digits"):
        codec.encode(decimal.Decimal(digits + "1"))
    with pytest.raises(InvalidPayload):
        codec.decode(frames.Payload(frames.MSGPACK, msgspec.msgpack.encode(Ext(extensions.DECIMAL, b"1" * (most + 1)))))
    # An integer is binary, and has no such bound but the payload's.
    for number in (10**400, -(10**400), 1 << 64, -(1 << 63) - 1, 10**5000):
        assert codec.decode(codec.encode({"n": number})) == {"n": number}
