"""The lines of a control socket, byte for byte: other programs speak it too."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from snakepit_trio.control import protocol
from snakepit_trio.control.operations import EventsOf, read_params
from snakepit_trio.control.protocol import Refusal, event_line, failure, parse, success


def test_a_request() -> None:
    asked = parse(b'{"v": 1, "id": "x", "op": "status", "params": {"tree": true}, "more": 1}')
    assert (asked.v, asked.id, asked.op, asked.params) == (1, "x", "status", {"tree": True})
    least = parse(b'{"v": 1, "op": "ping"}')
    assert (least.id, least.params) == (None, {})


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"v": 1}', b'{"op": "ping"}', b'{"v": "1", "op": "x"}', b"\xff"])
def test_what_is_no_request(line: bytes) -> None:
    with pytest.raises(Refusal, match="not a request") as refused:
        parse(line)
    assert (refused.value.code, refused.value.id) == ("bad_request", None)


@pytest.mark.parametrize("version", [0, 2, -1])
def test_another_version(version: int) -> None:
    with pytest.raises(Refusal, match=f"the client speaks version {version}, this runtime 1") as refused:
        parse(json.dumps({"v": version, "id": 7, "op": "ping"}).encode())
    assert (refused.value.code, refused.value.id) == ("protocol_mismatch", 7)


def test_answers() -> None:
    assert success(7, {"a": [1, math.nan]}) == b'{"v":1,"id":7,"ok":true,"result":{"a":[1,null]}}\n'
    assert failure(None, "busy", "no") == b'{"v":1,"id":null,"ok":false,"error":{"code":"busy","message":"no"}}\n'
    assert event_line("x", {"name": "a"}, 3) == b'{"v":1,"id":"x","event":{"name":"a"},"dropped":3}\n'


def test_the_longest_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    line = success(1, {"a": "x" * 50})
    monkeypatch.setattr(protocol, "ANSWER_LIMIT", len(line))
    assert success(1, {"a": "x" * 50}) == line
    said = json.loads(success(1, {"a": "x" * 51}))
    assert said["error"] == {
        "code": "too_large",
        "message": f"the answer has {len(line) + 1} bytes; the limit is {len(line)}",
    }
    assert (said["ok"], said["id"]) == (False, 1)


@pytest.mark.parametrize("params", [{"prefixes": "a"}, {"prefixes": [1]}, {"other": 1}])
def test_parameters_that_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as refused:
        read_params(EventsOf, params)
    assert refused.value.code == "invalid_parameter"
    assert read_params(EventsOf, {}).prefixes == []
