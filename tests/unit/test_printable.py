"""What people, programs and agents get to see of a value."""

from __future__ import annotations

import json
import math

import pytest

import snakepit_trio as sp
from snakepit_trio.cli.common import to_json

NOWHERE = {"a": [1.5, math.nan, None], "b": (-math.inf,), 3: {math.inf}}


def test_what_json_has_no_number_for_is_not_nothing() -> None:
    assert json.loads(to_json(NOWHERE)) == {"a": [1.5, "nan", None], "b": ["-inf"], "3": ["inf"]}
    assert to_json(math.nan) == '"nan"'
    assert to_json(complex(1, math.nan)) == '[1.0,"nan"]'
    assert to_json({"a": None, "b": b"x"}) == '{"a":null,"b":"eA=="}'


def test_an_agent_gets_numbers_or_an_error() -> None:
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    from snakepit_trio.bridge.mcp import _as_json

    assert _as_json({"a": None, "b": (1,)}) == {"a": None, "b": [1]}
    with pytest.raises(sp.InvalidPayload, match="JSON has no number for nan"):
        _as_json(NOWHERE)
