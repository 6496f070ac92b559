"""The catalogue of events, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from snakepit_trio.observe.catalogue import CATALOGUE, FINAL, check, document
from snakepit_trio.observe.events import EventBus

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_catalogue_gives() -> None:
    assert (ROOT / "docs" / "events.md").read_text() == document(), "nox -s events -- --write"


def test_every_final_event_is_there() -> None:
    assert CATALOGUE.keys() >= FINAL


@pytest.mark.parametrize(
    ("name", "measurements", "metadata"),
    [
        ("pool.exploded", {}, {}),
        ("pool.closed", {}, {}),
        ("pool.closed", {}, {"pool": "p", "colour": "red"}),
        ("pool.closed", {"size": 1}, {"pool": "p"}),
        ("pool.resized", {"before": 1, "size": "2"}, {"pool": "p", "reason": "load"}),
        ("pool.resized", {"before": 1, "size": float("nan")}, {"pool": "p", "reason": "load"}),
    ],
)
def test_what_the_catalogue_refuses(
    name: str, measurements: dict[str, float], metadata: dict[str, str], internal_errors: list[BaseException]
) -> None:
    with pytest.raises(ValueError, match=name):
        check(name, measurements, metadata)
    bus = EventBus(1)
    bus.emit(name, measurements, **metadata)
    (error,) = internal_errors
    assert isinstance(error, ValueError) and name in str(error)
    assert not bus.history and bus.errors.counts == {"observer": 1}


def test_a_bus_remembers_what_comes_singly_and_is_not_active_for_that() -> None:
    bus = EventBus(2)
    for size in range(3):
        bus.emit("pool.resized", {"before": 0, "size": size}, pool="password=hunter2", reason="load")
    assert [event.measurements["size"] for event in bus.history] == [1, 2]
    assert bus.history[0].metadata == {"pool": "password=[redacted]", "reason": "load"}
    assert not bus.active


@pytest.mark.parametrize(
    ("name", "measurements"),
    [("pool.closed", {}), ("a b", {}), ("", {}), ("x" * 200, {}), ("fine", {"n": "1"}), ("fine", {"n": True})],
)
def test_what_a_tool_may_not_tell(name: str, measurements: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        EventBus(1).emit_from_tool(name, measurements, {})
