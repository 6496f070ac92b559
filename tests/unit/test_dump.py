"""What the flight recorder writes holds no secrets, whoever let them in, and is JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from snakepit_trio.observe.events import EventBus
from snakepit_trio.observe.recorder import KEPT, FlightRecorder
from snakepit_trio.observe.redaction import Redactor

SECRETS = {
    "password": "hunter2",
    "url": "postgres://me:hunter2@host/",
    "note": "hunter2 is the word",
    "deep": [{"token": "hunter2"}],
}


def recorder(place: Path, bus: EventBus, state: dict[str, Any]) -> FlightRecorder:
    return FlightRecorder(bus, lambda: state, lambda: place, Redactor(["hunter2 is"]), "run")


def test_a_dump_holds_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventBus, "check", None)
    # A bus that lets them in.
    bus = EventBus(10, lambda value: value)
    bus.emit("made.up", {"size": 2.0}, **SECRETS)
    found = recorder(tmp_path, bus, {"pools": {"default": SECRETS}}).dump()
    assert "hunter2" not in json.dumps(found)
    (event,) = found["events"]
    assert event["name"] == "made.up" and event["measurements"] == {"size": 2.0}
    assert event["metadata"]["password"] == found["pools"]["default"]["password"] == "[redacted]"


def test_an_event_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventBus, "check", None)
    bus = EventBus(10)
    bus.emit("made.up", None, **SECRETS)
    assert "hunter2@" not in repr(bus.history) and bus.history[0].metadata["password"] == "[redacted]"


def test_a_dump_is_json_whatever_is_in_it(tmp_path: Path) -> None:
    state = {"a": math.nan, "b": [math.inf, 1.5], "c": {1: (True, None)}, "d": {"x"}, "e": 1 + 2j, "f": b"abc"}
    found = recorder(tmp_path, EventBus(10), state).dump()
    shown = {key: found[key] for key in state}
    assert shown == {"a": None, "b": [None, 1.5], "c": {"1": [True, None]}, "d": ["x"], "e": "(1+2j)", "f": "<3 bytes>"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_last_dumps_are_kept(tmp_path: Path) -> None:
    made = recorder(tmp_path, EventBus(10), {})
    for number in range(KEPT + 2):
        path = made.write("demand", {"number": number})
        assert path is not None
        os.utime(path, (number, number))
    kept = [json.loads(path.read_text())["number"] for path in tmp_path.glob("*.json")]
    assert sorted(kept) == list(range(2, KEPT + 2))
    assert path is not None and json.loads(path.read_text()) == {"reason": "demand", "number": KEPT + 1}
