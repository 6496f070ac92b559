"""What annotations make of the values that arrive, and which of them a tool can't have."""

from __future__ import annotations

import collections
import collections.abc as abc
import dataclasses
import datetime as dt
import enum
import fractions
import ipaddress
import json
import numbers
import os
import pathlib
import re
import typing
import zoneinfo
from typing import Any

import numpy as np
import pandas as pd
import pytest

import snakepit_trio as sp
from snakepit_trio.tools.schemas import compile_check
from snakepit_trio.wire import codec
from snakepit_trio.worker.adapter import options_of
from snakepit_trio.worker.toolbox import Tool


class Colour(enum.Enum):
    RED = "red"


class Mixed(enum.Enum):
    NONE = None
    PAIR = (1, 2)
    TEXT = "text"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    HIGH = 3


class Name(str):
    __slots__ = ()


class Plain:
    pass


class Reader(typing.Protocol):
    def read(self) -> bytes: ...


@dataclasses.dataclass
class Place:
    path: pathlib.Path
    colour: Colour


def tool(hint: Any, *default: Any) -> Tool:
    def f(value: Any) -> Any:
        return value

    f.__annotations__["value"] = hint
    f.__defaults__ = default or None
    options = options_of(sp.tool(f))
    assert options is not None
    return Tool(f, options)


def given(hint: Any, value: Any) -> Any:
    """What a tool's parameter gets: sent by a caller, checked in the host, and bound in the worker."""
    made = tool(hint)
    params = {"value": value}
    check = compile_check("f", made.parameters_schema)
    if check is not None:
        check(params)
    (positional,), _ = made.bind(codec.decode(codec.encode(params)), None)
    return positional


PATH = pathlib.Path("a/b")
#: Annotation, what is given, what the tool gets.
MADE: list[tuple[Any, Any, Any]] = [
    (pathlib.Path, PATH, PATH),
    (pathlib.Path, "a/b", PATH),
    (pathlib.PurePosixPath, "a/b", pathlib.PurePosixPath("a/b")),
    (pathlib.Path | None, "a/b", PATH),
    (pathlib.Path | None, None, None),
    (pathlib.Path | str, PATH, PATH),
    (os.PathLike, PATH, PATH),
    (list[pathlib.Path], ["a/b", PATH], [PATH, PATH]),
    (dict[str, pathlib.Path], {"x": "a/b"}, {"x": PATH}),
    (typing.Annotated[pathlib.Path, "a place"], "a/b", PATH),
    (Place, Place(PATH, Colour.RED), Place(PATH, Colour.RED)),
    (Place, {"path": "a/b", "colour": "red"}, Place(PATH, Colour.RED)),
    (Colour, Colour.RED, Colour.RED),
    (Colour, "red", Colour.RED),
    (list[Colour], [Colour.RED, "red"], [Colour.RED] * 2),
    (Mixed, Mixed.PAIR, Mixed.PAIR),
    (Mixed, Mixed.NONE, Mixed.NONE),
    (Mixed | None, "text", Mixed.TEXT),
    (Access, Access.READ | Access.WRITE, Access.READ | Access.WRITE),
    (Access, 2, Access.WRITE),
    (Access | None, None, None),
    (Level, Level.HIGH, Level.HIGH),
    (Any, Level.HIGH, 3),
    (fractions.Fraction, fractions.Fraction(1, 3), fractions.Fraction(1, 3)),
    (fractions.Fraction, "1/3", fractions.Fraction(1, 3)),
    (fractions.Fraction, 2, fractions.Fraction(2)),
    (ipaddress.IPv4Address, "10.0.0.1", ipaddress.IPv4Address("10.0.0.1")),
    (ipaddress.IPv6Network, ipaddress.ip_network("fe80::/10"), ipaddress.ip_network("fe80::/10")),
    (re.Pattern, "a+", re.compile("a+")),
    (re.Pattern[bytes], re.compile(b"a"), re.compile(b"a")),
    (zoneinfo.ZoneInfo, "Europe/Paris", zoneinfo.ZoneInfo("Europe/Paris")),
    (dt.tzinfo, dt.UTC, dt.UTC),
    (pd.Timestamp, pd.Timestamp("2024-01-01", tz="UTC"), pd.Timestamp("2024-01-01", tz="UTC")),
    (pd.Timestamp, "2024-01-01", pd.Timestamp("2024-01-01")),
    (pd.Timestamp, dt.datetime(2024, 1, 1), pd.Timestamp("2024-01-01")),
    (pd.Timedelta, dt.timedelta(hours=1), pd.Timedelta("1h")),
    (np.datetime64, "2024-01-01", np.datetime64("2024-01-01")),
    (np.datetime64, np.datetime64(1, "ns"), np.datetime64(1, "ns")),
    (np.float64, 1.5, np.float64(1.5)),
    (Name, "n", Name("n")),
    (collections.OrderedDict, {"a": 1}, collections.OrderedDict(a=1)),
    (collections.Counter, {"a": 1}, collections.Counter(a=1)),
    (collections.defaultdict, {"a": 1}, collections.defaultdict(None, a=1)),
    (collections.deque, [1, 2], collections.deque([1, 2])),
    (numbers.Number, 3, 3),
    (abc.Iterable[int], [1], [1]),
    (object, 1, 1),
    (Reader, b"", b""),
]


@pytest.mark.parametrize(("hint", "value", "wanted"), MADE, ids=str)
def test_what_the_tool_gets(hint: Any, value: Any, wanted: Any) -> None:
    found = given(hint, value)
    assert type(found) is type(wanted)
    assert found == wanted


def test_a_model_of_pydantic() -> None:
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", n=(int, ...))
    model = pydantic.create_model("Model", inner=(inner, ...), path=(pathlib.Path, ...))
    value = model(inner=inner(n=1), path="a/b")
    for sent in (value, {"inner": {"n": 1}, "path": "a/b"}):
        found = given(model, sent)
        assert (type(found), found) == (model, value)
    with pytest.raises(sp.InvalidParameter, match="valid integer"):
        given(inner, {"n": "x"})


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (pathlib.Path, 3, "expected Path, got int"),
        (list[pathlib.Path], ["a", 3], 'params["value"][1]: expected Path, got int'),
        (ipaddress.IPv4Address, "x - at `$.y`", "expected IPv4Address, got 'x - at $.y'"),
        (ipaddress.IPv4Address, "::1", "expected IPv4Address, got '::1'"),
        (fractions.Fraction, 0.5, "expected Fraction, got float"),
        (fractions.Fraction, "1/0", "expected Fraction, got '1/0'"),
        (re.Pattern, "(", "expected Pattern, got '(': missing )"),
        (zoneinfo.ZoneInfo, "../x", "expected ZoneInfo, got '../x'"),
        (pd.Timestamp, "soon", "expected Timestamp, got 'soon'"),
        (np.float64, "x" * 100, f"expected float64, got '{'x' * 60}'"),
        (Colour, "blue", "blue"),
        (Mixed, "blue", "no member of Mixed has this value"),
        (Access, 8, "no member of Access has this value"),
        (dt.datetime, pd.Timestamp("2024-01-01"), "expected datetime, got Timestamp"),
        (np.ndarray, [1], "expected numpy.ndarray, got list"),
    ],
)
def test_a_value_that_names_none(hint: Any, value: Any, words: str) -> None:
    with pytest.raises(sp.InvalidParameter) as caught:
        given(hint, value)
    assert words in caught.value.message
    assert caught.value.details["path"].startswith('params["value"]')


class Tensor:
    """An array of another library."""

    def __dlpack__(self) -> Any: ...


LISTED = "annotate it with one that docs/payloads.md lists, such as a dataclass"
IMPOSSIBLE: list[tuple[Any, str]] = [
    (Tensor, "Tensor"),
    (Plain, "Plain"), (range, "range"), (slice, "slice"), (type, "type"), (type[int], "type[int]"),
    (abc.Callable, "Callable"), (typing.Callable[[int], str], "typing.Callable[[int], str]"), (typing.IO[bytes], "typing.IO[bytes]"),
    (abc.Iterator[int], "collections.abc.Iterator[int]"), (abc.Awaitable, "Awaitable"), (ValueError, "ValueError"),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "name"), IMPOSSIBLE, ids=str)
def test_a_parameter_that_no_value_meets_is_refused_with_its_name(hint: Any, name: str) -> None:
    with pytest.raises(sp.ConfigError) as caught:
        tool(hint)
    remedies = {
        Tensor: "annotate it as numpy.ndarray, as which arrays of other libraries arrive",
    }
    assert caught.value.message == (
        f"tool 'f': no value of type {name} can be sent, so its parameter 'value' can't be given; {remedies.get(hint, LISTED)}"
    )
    assert caught.value.details["parameter"] == "value"
    # With a default, or None, the tool can be called.
    tool(hint, None)
    if hint is not abc.Callable and hint is not abc.Awaitable:
        tool(typing.Optional[hint])  # noqa: UP045
    tool(list[hint])


def test_schemas_say_how_a_value_is_written_and_name_every_parameter() -> None:
    def properties(hint: Any) -> Any:
        return json.loads(tool(hint).parameters_schema)["properties"]["value"]

    assert properties(pathlib.Path) == {"type": "string", "format": "path"}
    assert properties(re.Pattern[str]) == {"type": "string", "format": "regex"}
    assert properties(list[ipaddress.IPv4Address]) == {"type": "array", "items": {"type": "string", "format": "ipv4"}}
    assert properties(pathlib.Path | None) == {"anyOf": [{"type": "string", "format": "path"}, {"type": "null"}]}
    assert properties(np.ndarray) == {"title": "ndarray"}
    assert properties(Access) == {"type": "integer"}
