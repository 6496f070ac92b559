"""Only what somebody listens to is made; who does not read loses the oldest, counted."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from snakepit_trio.errors import InvalidParameter
from snakepit_trio.observe import events
from snakepit_trio.observe.events import EventBus

pytestmark = pytest.mark.anyio


async def test_what_nobody_listens_to_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Counted(events.Event):
        def __init__(self, name: str, *rest: Any) -> None:
            made.append(name)
            super().__init__(name, *rest)

    monkeypatch.setattr(events, "Event", Counted)
    monkeypatch.setattr(EventBus, "check", None)
    bus = EventBus()
    assert not bus.wanted("request.completed")
    bus.emit_frequent("request.completed", {}, {})
    async with bus.subscribe("worker.") as workers:
        assert not bus.wanted("request.completed")
        bus.emit_frequent("request.completed", {}, {})
        bus.emit("pool.opened", {}, pool="p")
        bus.emit_from_tool("own.event", {}, {})
        assert not made
        async with bus.subscribe("request.completed", "own.") as narrow, bus.subscribe() as everything:
            for name in ("request.completed", "request.queued", "own.event", "worker.ready"):
                assert bus.wanted(name)
                bus.emit_frequent(name, {}, {})
            assert [event.name for event in iter(narrow.receive_nowait, None)] == ["request.completed", "own.event"]
            assert len(list(iter(everything.receive_nowait, None))) == 4
        assert made == ["request.completed", "request.queued", "own.event", "worker.ready"]
        # They have left, and are not remembered as listeners.
        assert not bus.wanted("request.completed")
        assert [event.name for event in iter(workers.receive_nowait, None)] == ["worker.ready"]
    assert not bus.wanted("worker.ready")


async def test_the_oldest_are_dropped_and_counted() -> None:
    bus = EventBus()
    async with bus.subscribe("own.", capacity=3) as stream:
        for number in range(10):
            bus.emit_from_tool("own.event", {"n": number}, {})
            bus.emit_from_tool("another", {"n": number}, {})
        assert stream.dropped == 7
        with anyio.fail_after(5):
            assert [(await anext(stream)).measurements["n"] for _ in range(3)] == [7, 8, 9]


async def test_what_is_refused() -> None:
    bus = EventBus()
    for prefixes, capacity in ((("a", 1), 1), ((), 0), ((), -1), ((), 1.0), ((), True)):
        with pytest.raises(InvalidParameter):
            async with bus.subscribe(*prefixes, capacity=capacity):  # type: ignore[arg-type]
                pytest.fail("subscribed")
    assert not bus.active
    for name, measurements in (
        ("worker.ready", {}), ("1a", {}), ("", {}), ("a b", {}), ("a" * 129, {}),
        ("own", {"n": True}), ("own", {"n": "1"}), ("own", {1: 1}), ("own", {"n": None}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"is no name|not numbers"):
            bus.emit_from_tool(name, measurements, {})  # type: ignore[arg-type]
    async with bus.subscribe(capacity=1) as stream:
        bus.emit_from_tool("a" * 128, {"n": 1, "m": 1.5}, {"token": "secret"})
        event = stream.receive_nowait()
        assert event is not None and event.metadata == {"token": "[redacted]"}


async def test_it_ends_after_what_still_waits() -> None:
    bus = EventBus()
    async with bus.subscribe() as early:
        bus.emit_from_tool("one", {}, {})
        bus.close()
        with anyio.fail_after(5):
            assert [event.name async for event in early] == ["one"]
            async with bus.subscribe() as stream:
                assert [event async for event in stream] == []


async def test_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventBus, "check", None)
    bus = EventBus(2)
    for number in range(3):
        bus.emit("pool.opened", {"size": number}, pool="p")
        bus.emit_frequent("request.completed", {}, {})
    assert [event.measurements["size"] for event in bus.history] == [1, 2]
