"""What one client of a control socket can hold: lines, connections, events that it does not read."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import trio
import trio.testing

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.control import server
from snakepit_trio.control.operations import EventsOf
from snakepit_trio.control.protocol import REQUEST_LIMIT, Refusal
from snakepit_trio.control.server import ControlServer, _Connection
from snakepit_trio.observe.events import Event, EventBus


class Operations:
    def event(self, event: Event) -> dict[str, Any]:
        return {"number": event.measurements["number"]}


class Reader:
    """A client that takes nothing between ``stop`` and ``go``."""

    def __init__(self) -> None:
        self.go, self.gone = anyio.Event(), anyio.Event()
        self.pieces: list[list[dict[str, Any]]] = []
        self.last = -1

    async def send(self, data: bytes) -> bool:
        lines = [json.loads(line) for line in data.splitlines()]
        if "event" in lines[0]:
            await self.go.wait()
            self.pieces.append(lines)
        if lines[-1].get("event", {}).get("number") != self.last:
            return True
        self.gone.set()
        return False

    async def spoken(self) -> None:
        await anyio.sleep_forever()


@pytest.mark.anyio
async def test_of_events_that_nobody_reads_a_thousand_are_kept_and_a_hundred_sent_together() -> None:
    bus = EventBus()
    made = ControlServer(cast("Any", Operations()), bus, Path("/nowhere"), InternalErrors(), lambda: None)
    reader = Reader()
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(made._stream, reader, 7, EventsOf(prefixes=["mine."]))
        await anyio.wait_all_tasks_blocked()
        # It takes the first; a thousand wait; of the rest the oldest are dropped, and it is told how many.
        reader.last = 1499
        bus.emit_from_tool("mine.count", {"number": 0}, {})
        await anyio.wait_all_tasks_blocked()
        for number in range(1, 1500):
            bus.emit_from_tool("mine.count", {"number": number}, {})
            bus.emit_from_tool("other.count", {"number": -1}, {})
        reader.go.set()
        with anyio.move_on_after(10) as waiting:
            await reader.gone.wait()
        nursery.cancel_scope.cancel()
    assert not waiting.cancelled_caught
    assert [len(piece) for piece in reader.pieces] == [1] + [100] * 10
    told = [line for piece in reader.pieces for line in piece]
    assert [line["event"]["number"] for line in told] == [0, *range(500, 1500)]
    assert [line["dropped"] for line in told] == [0] + [499] * 1000
    assert all(line["id"] == 7 for line in told)


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def on_a_clock_of_its_own(function: Any) -> Any:
    return trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))


def test_how_long_a_line_may_be_and_how_long_it_may_take() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            connection = _Connection(ours)
            theirs.send(b"one\ntwo\nthr")
            assert [await connection.line(), await connection.line()] == [b"one", b"two"]
            begun = trio.current_time()
            with pytest.raises(Refusal, match="no whole line within 10 s") as late:
                await connection.line()
            assert late.value.code == "bad_request" and trio.current_time() - begun == 10
        with pair() as (ours, theirs):
            # Nothing at all is silence, which may be longer; then the rest of a line has its own time.
            connection = _Connection(ours)
            begun = trio.current_time()
            assert await connection.line() is None and trio.current_time() - begun == 300
        with pair() as (ours, theirs):
            connection = _Connection(ours)
            theirs.close()
            assert await connection.line() is None

    on_a_clock_of_its_own(main)


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_line(more: int) -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            connection = _Connection(ours)
            connection._read += b"x" * (REQUEST_LIMIT + more)
            theirs.send(b"\n")
            if more:
                with pytest.raises(Refusal, match=f"at most {REQUEST_LIMIT} bytes") as refused:
                    await connection.line()
                assert refused.value.code == "too_large"
            else:
                assert await connection.line() == b"x" * REQUEST_LIMIT

    on_a_clock_of_its_own(main)


def test_an_answer_that_is_not_taken() -> None:
    async def main() -> None:
        with pair() as (ours, _theirs):
            connection = _Connection(ours)
            assert await connection.send(b"short")
            begun = trio.current_time()
            assert not await connection.send(bytes(4 << 20))
            assert trio.current_time() - begun == 10
        with pair() as (ours, theirs):
            theirs.close()
            assert not await _Connection(ours).send(b"x")

    on_a_clock_of_its_own(main)


def test_a_client_too_many_takes_the_place_of_the_longest_silent_or_is_told() -> None:
    async def main() -> None:
        made = ControlServer(cast("Any", Operations()), EventBus(), Path("/nowhere"), InternalErrors(), lambda: None)
        theirs: list[socket.socket] = []

        async def admit(nursery: Any) -> _Connection | None:
            ours, other = socket.socketpair()
            theirs.append(other)
            made._admit(ours, nursery)
            await trio.testing.wait_all_tasks_blocked()
            return next(reversed(made._connections), None)

        async with anyio.create_task_group() as nursery:
            held = []
            for _ in range(16):
                held.append(await admit(nursery))
                await trio.sleep(1)
            assert list(made._connections) == held
            last = await admit(nursery)
            # The first has been silent for longest.
            assert list(made._connections) == [*held[1:], last] and theirs[0].recv(10) == b""
            for connection in made._connections:
                connection.idle_since = float("inf")
            await admit(nursery)
            assert list(made._connections) == [*held[1:], last]
            refused = json.loads(theirs[-1].recv(1000))
            assert refused["error"] == {"code": "busy", "message": "there are 16 connections already"}
            assert theirs[-1].recv(10) == b""
            nursery.cancel_scope.cancel()
        for sock in theirs:
            sock.close()
        assert not made._connections

    on_a_clock_of_its_own(main)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux tells who is there")
def test_whose_process_is_at_the_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair() as (ours, _):
        assert server._is_ours(ours)
        user = server.os.geteuid()
        monkeypatch.setattr(server.os, "geteuid", lambda: user + 1)
        assert not server._is_ours(ours)
