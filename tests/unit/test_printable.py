"""What people, programs and agents get to see of a value."""

from __future__ import annotations

import json
import math

import pytest

import snakepit_trio as sp
from snakepit_trio.cli.common import to_json
from snakepit_trio.control import protocol
from snakepit_trio.observe.printable import json_bytes, one_line

NOWHERE = {"a": [1.5, math.nan, None], "b": (-math.inf,), 3: {math.inf}}


def test_what_json_has_no_number_for_is_not_nothing() -> None:
    assert json.loads(to_json(NOWHERE)) == {"a": [1.5, "nan", None], "b": ["-inf"], "3": ["inf"]}
    assert to_json(math.nan) == '"nan"'
    assert to_json(complex(1, math.nan)) == '[1.0,"nan"]'
    assert to_json({"a": None, "b": b"x"}) == '{"a":null,"b":"eA=="}'


def test_text_from_elsewhere_is_one_line_of_a_log() -> None:
    assert one_line("no such device") == "no such device"
    hostile = "red \x1b[31m\r\n2026-01-01 ERROR forged\t\u202e\ud800"
    assert one_line(hostile) == r"red \x1b[31m\x0d\n2026-01-01 ERROR forged \x202e\xd800"
    assert len(one_line("\n" * 1_000_000)) < 3000


def test_an_agent_gets_numbers_or_an_error() -> None:
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    from snakepit_trio.bridge.mcp import _as_json

    assert _as_json({"a": None, "b": (1,)}) == {"a": None, "b": [1]}
    with pytest.raises(sp.InvalidPayload, match="JSON has no number for nan"):
        _as_json(NOWHERE)


def test_text_that_is_no_utf8_is_escaped() -> None:
    name = b"/srv/\xff".decode(errors="surrogateescape")
    value = {"path": name, name: [(name, 1)], "plain": "\u00e4"}
    expected = {"path": "/srv/\\udcff", "/srv/\\udcff": [["/srv/\\udcff", 1]], "plain": "\u00e4"}
    assert json.loads(to_json(value)) == expected
    assert json.loads(to_json([name, math.nan])) == ["/srv/\\udcff", "nan"]
    assert json.loads(protocol.success(1, value))["result"] == expected
    assert json.loads(protocol.failure(1, "code", name))["error"]["message"] == "/srv/\\udcff"
    assert json.loads(protocol.event_line(1, value, 0))["event"] == expected


@pytest.mark.parametrize("key", [None, True, (1, 2), 5, 2.5])
def test_keys_of_any_kind_beside_values_of_any_kind(key: object) -> None:
    name = str(key)
    assert json.loads(json_bytes({key: 1})) == {name: 1}
    assert json.loads(json_bytes({key: [math.nan, None]})) == {name: ["nan", None]}
    assert json.loads(json_bytes({key: "\udcff"})) == {name: "\\udcff"}
