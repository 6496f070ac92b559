"""What the host refuses by a tool's schema, the worker would have refused by its hints, in the same words."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from typing import Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

import snakepit_trio as sp
from snakepit_trio.tools import schemas
from snakepit_trio.tools.schemas import compile_check
from snakepit_trio.worker.adapter import options_of
from snakepit_trio.worker.toolbox import Tool


@dataclasses.dataclass
class Point:
    x: int
    y: str = "a"


class Colour(enum.Enum):
    RED = 1


class Options(TypedDict, total=False):
    deep: int


@sp.tool
def everything(
    a: int = 0,
    p: Point | None = None,
    q: Point = Point(1),  # noqa: B008
    e: Colour = Colour.RED,
    t: tuple[int, str] = (1, "x"),
    d: dict[str, int] = {},  # noqa: B006
    u: int | str | None = None,
    b: bytes = b"",
    w: dt.datetime | None = None,
    s: set[int] = set(),  # noqa: B006
    o: Options = {},  # noqa: B006
    f: float = 1.0,
    x: Any = None,
    n: list[list[int]] = [],  # noqa: B006
) -> None: ...


@sp.tool
def strict(a: int, b: str) -> None: ...


@sp.tool
def loose(a: int, **rest: Any) -> None: ...


def both(function: Any, params: dict[str, Any]) -> tuple[str | None, str | None]:
    """What the host and the worker say of these arguments."""
    options = options_of(function)
    assert options is not None
    tool = Tool(function, options)
    check = compile_check(tool.name, tool.parameters_schema)
    assert check is not None
    found: list[str | None] = []
    for judge in (check, lambda given: tool.bind(given, None)):  # type: ignore[arg-type]
        try:
            judge(params)
        except sp.InvalidParameter as exc:
            found.append(f"{exc.details['path']}: {exc.details['reason']}")
        else:
            found.append(None)
    return found[0], found[1]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=2) | st.binary(max_size=2)
    | st.just(dt.datetime(2020, 1, 1)) | st.just({1, 2}),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(st.sampled_from(["x", "y", "deep"]), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(["a", "p", "q", "e", "t", "d", "u", "b", "w", "s", "o", "f", "x", "n"]), values, max_size=2
    )
)
def test_nothing_that_a_worker_takes_is_refused(params: dict[str, Any]) -> None:
    host, worker = both(everything, params)
    assert host is None or worker is not None


@pytest.mark.parametrize(
    ("function", "params", "expected"),
    [
        (strict, {"a": 1, "b": "x"}, None),
        (strict, {"a": 1}, 'params["b"]: is missing'),
        (strict, {"a": 1, "b": "x", "c": 2}, 'params["c"]: is not a parameter of the tool'),
        (strict, {"a": "1", "b": "x"}, 'params["a"]: expected int, got str'),
        (strict, {"a": 1, "b": None}, 'params["b"]: expected str, got null'),
        (loose, {"a": 1, "c": 2}, None),
        (everything, {"n": [[1], [1, "x"]]}, 'params["n"][1][1]: expected int, got str'),
        (everything, {"q": {"x": "no"}}, 'params["q"]["x"]: expected int, got str'),
        (everything, {"q": {"y": "no"}}, 'params["q"]["x"]: is missing'),
        (everything, {"u": []}, 'params["u"]: expected int | str | null, got array'),
        (everything, {"a": True}, 'params["a"]: expected int, got bool'),
    ],
)
def test_what_is_wrong_and_where(function: Any, params: dict[str, Any], expected: str | None) -> None:
    host, worker = both(function, params)
    assert host == expected
    if expected is None or "missing" not in expected:
        assert worker == expected


@pytest.mark.parametrize("schema", ["", "no JSON", "[]", "{}", '{"properties": 3}', '{"type": "string"}'])
def test_a_schema_that_says_nothing_checks_nothing(schema: str) -> None:
    assert compile_check("tool", schema) is None


def _doubling(levels: int, width: int) -> str:
    """Each definition refers to the next so many times."""
    parts = {
        f"d{level}": {
            "type": "object",
            "properties": {f"p{i}": {"$ref": f"#/$defs/d{level + 1}"} for i in range(width)},
        }
        for level in range(levels)
    }
    parts[f"d{levels}"] = {"type": "integer"}
    return json.dumps({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": parts})


HUGE: dict[str, str] = {
    "references that double": _doubling(7, 8),
    "a definition of itself": json.dumps(
        {
            "properties": {"a": {"$ref": "#/$defs/d"}},
            "$defs": {"d": {"type": "object", "properties": {f"p{i}": {"$ref": "#/$defs/d"} for i in range(50)}}},
        }
    ),
    "many parts": json.dumps({"properties": {f"p{i}": {"type": "integer"} for i in range(8000)}}),
    "many in each of many": json.dumps(
        {
            "properties": {
                f"p{i}": {"type": "object", "properties": {f"q{j}": {"type": "integer"} for j in range(90)}}
                for i in range(90)
            }
        }
    ),
}


@pytest.mark.parametrize("kind", HUGE)
def test_how_much_of_a_schema_is_looked_at_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    fits = schemas._FITS

    class Counting(dict[str, frozenset[str]]):
        def __contains__(self, key: object) -> bool:
            nonlocal looked
            looked += 1
            return key in fits

    monkeypatch.setattr(schemas, "_FITS", Counting(fits))
    assert schemas.compile_check("tool", HUGE[kind]) is not None
    assert looked <= schemas._PARTS


def test_references_that_double_are_followed_all_the_same() -> None:
    check = compile_check("tool", _doubling(3, 8))
    assert check is not None
    check({"a": {"p7": {"p7": {"p7": 1}}}})
    with pytest.raises(sp.InvalidParameter, match=r'params\["a"\]\["p7"\]\["p0"\]\["p7"\]: expected int, got str'):
        check({"a": {"p7": {"p0": {"p7": "x"}}}})


@pytest.mark.parametrize(
    "text",
    [
        '{"properties": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
        '{"properties": {"a": ' + '{"items": ' * 100_000,
        json.dumps({"properties": {"a": {"description": "x" * 300_000}}}),
    ],
    ids=["deep", "deep and cut off", "long"],
)
def test_a_schema_that_can_not_be_looked_at_is_left_to_the_worker(text: str) -> None:
    assert compile_check("tool", text) is None


def test_long_lists_of_choices_are_left_to_the_worker() -> None:
    for part in ({"enum": list(range(6000))}, {"anyOf": [{"type": "integer"}] * 6000}):
        check = compile_check("tool", json.dumps({"properties": {"a": part, "b": {"type": "integer"}}}))
        assert check is not None
        check({"a": "x", "b": 1})


@pytest.mark.parametrize("count", [1, 20, 21, 300])
def test_of_many_choices_an_error_names_twenty_and_of_a_long_one_the_beginning(count: int) -> None:
    allowed = [f"a{number}" for number in range(count)]
    check = compile_check("tool", json.dumps({"properties": {"a": {"enum": allowed}}}))
    assert check is not None
    for sent in ("b" * 58, "b" * 59):
        with pytest.raises(sp.InvalidParameter) as caught:
            check({"a": sent})
        _, _, told = str(caught.value).partition("expected one of ")
        named, _, got = told.partition(", got ")
        assert named.split(", ") == [json.dumps(name) for name in allowed[:20]] + ["..."] * (count > 20)
        assert got == (f'"{sent}"' if len(sent) == 58 else f'"{"b" * 59}...')
