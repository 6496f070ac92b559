"""Small modules beside the rooms, and those of the client and of the tests of applications, without anything around them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

import snakepit_trio as sp
from snakepit_trio import _unix_door
from snakepit_trio._timeouts import check_timeout
from snakepit_trio._unix_door import UnixDoor
from snakepit_trio._user_code import Raised, run_in_thread
from snakepit_trio.client import channel
from snakepit_trio.client.host_tools import _Server
from snakepit_trio.client.values import pack, unpack
from snakepit_trio.launch.base import ExitStatus
from snakepit_trio.launch.spawn import PopenReaper, _status_of
from snakepit_trio.testing import Footprint, ScriptedWorkers, leaks
from snakepit_trio.wire.generated.snakepit import v1

# ---- times ---------------------------------------------------------------------------------------------


def test_timeouts_of_callers() -> None:
    assert [check_timeout(value) for value in (None, 0, 0.0, 1, 2.5, 1e9 - 1, 1e9, math.inf)] == [
        None, 0, 0.0, 1, 2.5, 1e9 - 1, None, None,
    ]  # fmt: skip
    for value in (-1, -0.001, math.nan, True, False, "1", [], -math.inf):
        with pytest.raises(sp.InvalidParameter) as refused:
            check_timeout(value)
        assert refused.value.details == {"path": "timeout"}


# ---- what a function raises ----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_whatever_a_function_raises() -> None:
    for error in (LookupError("a"), SystemExit(3), StopIteration(1)):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(BaseException) as raised:
            await run_in_thread(fail)
        assert raised.value is error or raised.value.__cause__ is error
    assert await run_in_thread(lambda: Raised) is Raised


@pytest.mark.anyio
async def test_what_is_held_and_what_passes() -> None:
    held = Raised()
    with held:
        pass
    held.again()
    error = LookupError()
    with held:
        raise error
    assert held.exc is error
    with pytest.raises(LookupError):
        held.again()
    assert held.exc is None
    for passes in (anyio.get_cancelled_exc_class(), lambda: ExceptionGroup("", [LookupError()])):
        made = passes() if passes is not anyio.get_cancelled_exc_class() else None
        if made is not None:
            with pytest.raises(ExceptionGroup), held:
                raise made
    with anyio.CancelScope() as scope:
        scope.cancel()
        with held:
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught and held.exc is None


# ---- a socket's file -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_socket_whose_file_is_taken_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_unix_door, "_LOOK", 0.01)
    with tempfile.TemporaryDirectory() as place:
        path, restored = Path(place) / "below" / "s", cast("list[bool]", [])
        path.parent.mkdir()
        door = UnixDoor(path, backlog=1, restore=lambda: restored.append(True))
        assert path.stat().st_mode & 0o777 == 0o600 and repr(door) == f"<UnixDoor {str(path)!r}>"

        async def come() -> None:
            with anyio.fail_after(10), socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                while not os.path.lexists(path):
                    await anyio.sleep(0.001)
                client.connect(str(path))
                await door.wait()
                door.sock.accept()[0].close()

        with caplog.at_level(logging.WARNING):
            await come()
            first = door.sock
            with anyio.move_on_after(0.05):
                await door.wait()
            # It was there: nothing is done.
            assert door.sock is first and not restored
            path.unlink()
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(door.wait)
                while door.sock is first:
                    await anyio.sleep(0.001)
                nursery.cancel_scope.cancel()
            assert restored == [True] and first.fileno() == -1
            await come()
            path.unlink()
            path.parent.rmdir()
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(door.wait)
                while len(restored) < 4:
                    await anyio.sleep(0.001)
                nursery.cancel_scope.cancel()
        # It is said once that it fails.
        assert [record.getMessage().partition("was removed")[2][:18] for record in caplog.records] == [
            "; it is made again", ", and can't be mad",
        ]  # fmt: skip
        path.parent.mkdir()
        path.write_text("another's")
        door.close()
        assert path.read_text() == "another's"
        path.unlink()
        other = UnixDoor(path, backlog=1, restore=lambda: None)
        other.close()
        assert not path.exists()


# ---- tools of a client ---------------------------------------------------------------------------------


class Link:
    """Starts each call in a nursery."""

    def __init__(self, nursery: Any) -> None:
        self.nursery = nursery

    def start(self, function: Any, *args: Any, ended: str, on_error: Any) -> None:
        self.nursery.start_soon(function, *args)


class Rpc:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[v1.ClientToolReply] = []
        self.cancelled = False

    def send(self, data: bytes) -> None:
        reply = v1.ClientToolFrame.parse(data).reply
        assert reply is not None
        self.sent.append(reply)

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.anyio
async def test_calls_of_a_clients_tools() -> None:
    waiting = anyio.Event()

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    async def fail() -> None:
        raise LookupError("secret")

    async with anyio.create_task_group() as nursery:
        tools = {"double": lambda n: 2 * n, "wait": wait, "fail": fail, "big": lambda: b"x" * 5000}
        server, rpc = _Server(cast("Any", Link(nursery)), tools, 1000), Rpc()
        server.rpc = cast("Any", rpc)

        def call(id: int, tool: str, **params: Any) -> None:
            payload = pack(params, what="params", limit=1000) if params else None
            server.on_message(bytes(v1.ClientToolCall(call_id=id, tool=tool, payload=payload)))

        assert not server.ready.is_set()
        server.on_message(bytes(v1.ClientToolCall(ready=True)))
        assert server.ready.is_set() and not server._scopes
        for id, (tool, params) in enumerate(
            (("double", {"n": 4}), ("fail", {}), ("none", {}), ("double", {}), ("big", {})), 1
        ):
            call(id, tool, **params)
        with anyio.fail_after(10):
            while len(rpc.sent) < 5:
                await anyio.sleep(0.001)
        found = {reply.call_id: reply for reply in rpc.sent}
        assert unpack(found[1].payload, what="result", limit=1000) == 8 and found[1].error is None
        errors = {
            id: (reply.error.code, list(reply.error.remote_types)[:1]) for id, reply in found.items() if reply.error
        }
        assert errors[2][1] == ["builtins.LookupError"] and errors[3][0] == "tool_not_found"
        assert errors[4][1] == ["builtins.TypeError"] and errors.keys() == {2, 3, 4, 5}
        assert not server._scopes
        call(9, "wait")
        await waiting.wait()
        server.on_message(bytes(v1.ClientToolCall(call_id=8, cancelled=True)))
        assert not server._scopes[9].cancel_called
        server.on_message(bytes(v1.ClientToolCall(call_id=9, cancelled=True)))
        with anyio.fail_after(10):
            while server._scopes:
                await anyio.sleep(0.001)
        # Nobody waits for it.
        assert len(rpc.sent) == 5
        call(10, "wait")
        server.on_end(0, "over")
        assert server.status == (0, "over") and server._scopes[10].cancel_called
    assert not rpc.cancelled


def test_values_with_and_without_what_travels_beside_them() -> None:
    value = {"a": b"x" * 200_000, "b": b"", "c": [1, (2,)]}
    message = pack(value, what="value", limit=1 << 20)
    assert len(message.buffers) == 1
    assert unpack(message, what="value", limit=1 << 20) == value
    assert unpack(None, what="value", limit=1) is None
    # A buffer that the host left empty.
    message.buffers[0] = v1.Buffer()
    assert unpack(message, what="value", limit=1 << 20)["a"] == b""


# ---- what a test may leave behind ----------------------------------------------------------------------


def test_what_has_grown() -> None:
    before = Footprint(frozenset({1}), frozenset({"a-1"}), {3: "pipe:[1]", 4: "/x"}, frozenset({"snakepit-a-1-x"}))
    after = Footprint(
        frozenset({1, 2}), frozenset({"a-1", "b-2"}),
        {3: "pipe:[2]", 4: "/x", 6: "/tmp/registry.sqlite3", 7: "socket:[3]"},
        frozenset({"snakepit-a-1-x", f"snakepit-b-{os.getpid()}-y"}),
    )  # fmt: skip
    assert after.grown_since(before) == [
        "child process 2", "thread b-2", "file descriptor 3 -> pipe:[2]", "file descriptor 7 -> socket:[3]",
        f"temporary directory snakepit-b-{os.getpid()}-y",
    ]  # fmt: skip
    assert before.grown_since(after) == ["file descriptor 3 -> pipe:[1]"]


def test_the_threads_that_the_interpreter_would_wait_for() -> None:
    go_on = threading.Event()
    made = [
        threading.Thread(target=go_on.wait, name=name, daemon=daemon)
        for name, daemon in (("a", False), ("b", True), ("Trio thread 1", False))
    ]
    for thread in made:
        thread.start()
    try:
        found = leaks._threads()
        assert [thread in found for thread in made] == [True, False, False] and threading.current_thread() in found
        assert f"a-{made[0].ident}" in Footprint.take().threads
    finally:
        go_on.set()
        for thread in made:
            thread.join()


# ---- the end of scripted workers, and of processes -----------------------------------------------------


@pytest.mark.anyio
async def test_scripted_workers_that_are_left_behind() -> None:
    for raised, noticed in ((None, True), (LookupError(), True), (KeyboardInterrupt(), False), (SystemExit(1), False)):
        workers = ScriptedWorkers({})
        workers.alive[cast("Any", object())] = None
        if noticed:
            with pytest.raises(AssertionError, match="left behind"):
                await workers.__aexit__(type(raised), raised, None)
        else:
            # A second one stops an asyncio loop in the middle of its clean-up.
            await workers.__aexit__(type(raised), raised, None)
        workers.alive.clear()
        await workers.__aexit__(type(raised), raised, None)


def test_how_subprocess_tells_an_end() -> None:
    assert [_status_of(code) for code in (0, 1, 255, -1, -9)] == [
        ExitStatus(code=0), ExitStatus(code=1), ExitStatus(code=255), ExitStatus(signal=1), ExitStatus(signal=9),
    ]  # fmt: skip
    # Until this process has reaped it, its id is nobody else's.
    assert PopenReaper(cast("Any", None)).alive()


@pytest.mark.anyio
async def test_how_long_a_client_waits_that_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection is made anew at once, but once; then it waits for room, a little longer each time, until it is enough."""
    now, waited = [100.0], list[float]()
    monkeypatch.setattr(anyio, "current_time", lambda: now[0])

    def move_on_after(seconds: float) -> Any:
        waited.append(seconds)
        now[0] += seconds
        return contextlib.nullcontext()

    monkeypatch.setattr(anyio, "move_on_after", move_on_after)

    async def freed() -> None:
        return

    link = SimpleNamespace(connect_timeout=2.0, wait_freed=freed)
    refused, begun = SimpleNamespace(unprocessed=True), SimpleNamespace(unprocessed=False)
    lost, there = SimpleNamespace(lost=True), SimpleNamespace(lost=False)
    patience = cast("Any", channel._Patience(cast("Any", link)))
    assert not await patience.again(begun, lost) and not waited
    assert await patience.again(refused, lost) and not waited and not patience.waiting
    while await patience.again(refused, lost):
        assert patience.waiting
    assert waited == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 0.45]) and now[0] == 102.0
    patience = cast("Any", channel._Patience(cast("Any", link)))
    assert await patience.again(refused, there) and patience.waiting and waited[-1] == 0.05
