"""The control socket of a running runtime, as its clients see it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import snakepit_trio as sp
from snakepit_trio.control import operations, server
from snakepit_trio.control.client import ControlClient, ControlError, connect
from snakepit_trio.supervision.runs import list_runs

pytestmark = pytest.mark.anyio
BASIC = "tests.adapters.basic"
CANARY = "hunter2-canary"


@asynccontextmanager
async def running(state: Path, **options: Any) -> AsyncIterator[tuple[sp.Runtime, str]]:
    config = sp.RuntimeConfig(
        pools=[sp.PoolConfig(adapter=BASIC, **{"size": 1, "env": {"PASSWORD": CANARY}, **options})],
        state_dir=str(state),
    )
    async with sp.open_runtime(config) as runtime:
        (run,) = list_runs(state)
        yield runtime, run.control


@asynccontextmanager
async def client(state: Path, **options: Any) -> AsyncIterator[tuple[sp.Runtime, ControlClient]]:
    async with running(state, **options) as (runtime, path), connect(path) as found:
        yield runtime, found


async def test_the_socket_is_private_and_goes_with_the_runtime(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with running(state) as (runtime, path):
        (run,) = list_runs(state)
        assert (run.run_id, run.pid, run.alive) == (runtime.run_id, os.getpid(), True)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(state).st_mode) == 0o700
        assert Path(path).is_relative_to(state)
    assert not os.path.exists(path)
    assert list_runs(state) == []
    with pytest.raises(ControlError, match="can't be reached"):
        async with connect(path):
            pass


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 30)
    async with client(state) as (runtime, control):
        assert (await control.ask("ping"))["run_id"] == runtime.run_id


async def test_status(tmp_path: Path) -> None:
    async with client(tmp_path) as (runtime, control), anyio.create_task_group() as nursery:
        pool = runtime.pool()

        async def call() -> None:
            await pool.execute("sleep", {"seconds": 60})

        async with runtime.events.subscribe("request.dispatched", "request.queued") as events:
            nursery.start_soon(call)
            nursery.start_soon(call)
            for _ in range(2):
                await events.__anext__()
        found = await control.ask("status", tree=True)
        assert found["versions"]["snakepit_trio"] == version("snakepit-trio")
        assert found["sessions"] == 0
        (shown,) = found["pools"]
        assert shown["stats"]["in_flight"] == shown["stats"]["queued"] == 1
        running, queued = sorted(shown["requests"], key=lambda request: request["phase"] != "running")
        assert running["worker_id"] == shown["workers"][0]["id"]
        assert running["age"] >= running["running_for"] >= 0
        assert queued["phase"] == "queued"
        assert queued["running_for"] is None
        names = {task["name"] for task in found["tasks"]}
        assert any(name.endswith("Slot.run") for name in names)
        assert any(name.endswith("Worker.run") for name in names)
        ids = {task["id"] for task in found["tasks"]}
        assert any(task["parent"] in ids for task in found["tasks"])
        nursery.cancel_scope.cancel()


async def test_no_answer_holds_a_secret(tmp_path: Path) -> None:
    async with client(tmp_path) as (runtime, control), anyio.create_task_group() as nursery:
        pool = runtime.pool()
        async with runtime.events.subscribe("request.dispatched") as events:
            nursery.start_soon(pool.execute, "echo", {"value": CANARY})
            await events.__anext__()
        async with runtime.events.subscribe("request.dispatched") as events:
            nursery.start_soon(lambda: pool.execute("sleep", {"seconds": 60}, metadata={"api_key": CANARY}))
            await events.__anext__()
        said = json.dumps([await control.ask("status", tree=True), await control.ask("flight")])
        assert CANARY not in said
        assert runtime._token not in said
        nursery.cancel_scope.cancel()


async def test_one_worker_is_cordoned_drained_restarted_killed(tmp_path: Path) -> None:
    async with client(tmp_path, size=2) as (runtime, control):
        pool = runtime.pool()
        first, second = (worker.id for worker in pool.workers())
        await control.ask("cordon", worker=first)
        assert (pool.stats().ready, pool.stats().cordoned) == (1, 1)
        assert [worker.state for worker in pool.workers()] == ["cordoned", "ready"]
        assert (await pool.execute("whoami"))["worker_id"] == second
        await control.ask("uncordon", worker=first)
        assert (pool.stats().ready, pool.stats().cordoned) == (2, 0)
        assert [worker.state for worker in pool.workers()] == ["ready", "ready"]
        assert (await control.ask("drain", worker=first))["worker"] == first
        assert (await control.ask("restart", worker=first, timeout=30))["replaced"]
        assert first not in {worker.id for worker in pool.workers()}
        async with runtime.events.subscribe("worker.ready") as events:
            await control.ask("kill", worker=second)
            await events.__anext__()
        assert second not in {worker.id for worker in pool.workers()}
        with pytest.raises(ControlError, match="no worker 'nobody'") as caught:
            await control.ask("kill", worker="nobody")
        assert caught.value.code == "no_such_worker"


async def test_a_drain_is_bounded_and_counts_the_calls(tmp_path: Path) -> None:
    async with client(tmp_path, size=2) as (runtime, control), anyio.create_task_group() as nursery:
        pool = runtime.pool()
        async with runtime.events.subscribe("request.dispatched") as events:
            nursery.start_soon(pool.execute, "sleep", {"seconds": 60})
            worker = (await events.__anext__()).metadata["worker_id"]

        def states() -> list[tuple[str, int]]:
            return [(info.state, info.in_flight) for info in pool.workers() if info.id == worker]

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as drains:
                drains.start_soon(pool.drain, worker)
                await anyio.wait_all_tasks_blocked()
                assert states() == [("draining", 1)]
                scope.cancel()
        # It is still to get no calls, and nobody waits any more for the one that it has.
        assert states() == [("cordoned", 1)] and pool.stats().cordoned == 1
        pool.cordon(worker, cordoned=False)
        assert states() == [("busy", 1)]
        with pytest.raises(ControlError, match="still held calls") as caught:
            await control.ask("drain", worker=worker, timeout_seconds=0.05)
        assert caught.value.code == "timeout"
        nursery.cancel_scope.cancel()


async def test_resize(tmp_path: Path) -> None:
    async with client(tmp_path) as (runtime, control):
        assert await control.ask("resize", size=2, timeout=30) == {"pool": "default", "size": 2}
        assert len(runtime.pool().workers()) == 2
        # A cordoned worker is none that has to be waited for.
        await control.ask("cordon", worker=runtime.pool().workers()[0].id)
        await control.ask("resize", size=3, timeout=30)
        assert runtime.pool().stats().ready == 2
        for size in (0, "2", 1.5):
            with pytest.raises(ControlError) as caught:
                await control.ask("resize", size=size)
            assert caught.value.code == "invalid_parameter"
        with pytest.raises(ControlError, match="no pool 'other'"):
            await control.ask("resize", size=1, pool="other")


async def test_events(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, path):
        async with connect(path) as listener, connect(path) as control:
            found = listener.events("worker.")
            async with anyio.create_task_group() as nursery:

                async def provoke() -> None:
                    while not runtime.events.active:
                        await anyio.sleep(0.01)
                    await control.ask("kill", worker=runtime.pool().workers()[0].id)

                nursery.start_soon(provoke)
                line = await found.__anext__()
            assert line["event"]["name"].startswith("worker.")
            assert line["dropped"] == 0
            await found.aclose()
        while runtime.events.active:
            await anyio.sleep(0.01)


def raw(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.setblocking(False)
    return sock


async def said(sock: socket.socket) -> dict[str, Any] | None:
    data = b""
    while not data.endswith(b"\n"):
        await anyio.wait_readable(sock)
        more = sock.recv(65536)
        if not more:
            return None
        data += more
    found: dict[str, Any] = json.loads(data)
    return found


async def closed(sock: socket.socket) -> None:
    """Wait until the other side has closed it, whatever it has sent before."""
    with contextlib.suppress(ConnectionResetError):
        while True:
            await anyio.wait_readable(sock)
            if not sock.recv(1 << 20):
                return


WRONG = [
    (b"nonsense\n", "bad_request"),
    (b"[1]\n", "bad_request"),
    (b'{"v": 1}\n', "bad_request"),
    (b"[" * 60_000 + b"\n", "bad_request"),
    (b'{"v": 2, "op": "ping"}\n', "protocol_mismatch"),
    (b'{"v": 1, "op": "format_disk"}\n', "unknown_operation"),
    (b'{"v": 1, "op": "ping", "params": {"x": 1}}\n', "invalid_parameter"),
    (b'{"v": 1, "op": "drain", "params": {"worker": "x", "timeout_seconds": -1}}\n', "invalid_parameter"),
]


async def test_what_is_no_request_is_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, path):
        with raw(path) as sock:
            for line, code in WRONG:
                sock.send(line)
                answer = await said(sock)
                assert answer is not None
                assert answer["error"]["code"] == code
            sock.send(b'{"v": 1, "id": "a", "op": "ping"}\n')
            again = await said(sock)
            assert again is not None
            assert (again["ok"], again["id"]) == (True, "a")


async def test_clients_that_misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_LINE", 0.1)
    monkeypatch.setattr(server, "_TAKEN", 0.1)
    monkeypatch.setattr(server, "_MOST", 2)
    monkeypatch.setattr(operations.Operations, "event", lambda *_: {"filler": "x" * 1_000_000})
    async with running(tmp_path) as (runtime, path):
        # A line without an end.
        with raw(path) as sock:
            sock.send(b"{")
            answer = await said(sock)
            assert answer is not None
            assert "no whole line" in answer["error"]["message"]
            assert await said(sock) is None
        # A line that is too long.
        with raw(path) as sock:
            with pytest.raises((BrokenPipeError, BlockingIOError, ConnectionResetError)):
                for _ in range(1000):
                    sock.send(b"x" * 10_000)
                    await anyio.lowlevel.checkpoint()
            await closed(sock)
        # One that does not read what it has asked for.
        with raw(path) as sock:
            sock.send(b'{"v": 1, "op": "events"}\n')
            while not runtime.events.active:
                await anyio.sleep(0.01)
            runtime.events.emit("pool.closed", None, pool="x")
            with anyio.fail_after(30):
                while runtime.events.active:
                    await anyio.sleep(0.01)
            await closed(sock)
        # More than there is room for: the one that was silent for longest makes it.
        with raw(path) as one, raw(path) as two:
            for sock in (one, two):
                sock.send(b'{"v": 1, "op": "ping"}\n')
                await said(sock)
            with raw(path) as three:
                three.send(b'{"v": 1, "op": "ping"}\n')
                assert await said(three) is not None
                assert await said(one) is None
                two.send(b'{"v": 1, "op": "ping"}\n')
                assert await said(two) is not None


async def test_another_user_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as (_, path):
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with raw(path) as sock:
            assert await said(sock) is None


async def test_it_can_be_left_out(tmp_path: Path) -> None:
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=BASIC, size=1)], state_dir=str(tmp_path), control=False)
    async with sp.open_runtime(config):
        (run,) = list_runs(tmp_path)
        assert not os.path.exists(run.control)


@pytest.mark.parametrize(
    ("place", "name", "code"),
    [
        (server._Connection, "send", "unreachable"),
        (server.protocol, "success", "internal"),
        (server.protocol, "encoded", "internal"),
        (server._Connection, "line", "unreachable"),
        (operations.Operations, "run", "internal"),
        (server.ControlServer, "_answer", "unreachable"),
    ],
)
async def test_an_answer_that_can_not_be_given_is_told_at_once(
    place: Any,
    name: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    internal_errors: list[BaseException],
) -> None:
    def fail(*args: object) -> None:
        monkeypatch.setattr(place, name, plain)
        raise RuntimeError(name)

    plain = getattr(place, name)
    async with running(tmp_path) as (runtime, path):
        monkeypatch.setattr(place, name, fail)
        with anyio.fail_after(5):
            async with connect(path) as control:
                with pytest.raises(ControlError) as raised:
                    await control.ask("ping", timeout=60)
                assert raised.value.code == code
                if code == "internal":
                    assert (await control.ask("ping", timeout=60))["run_id"] == runtime.run_id
            async with connect(path) as control:
                assert (await control.ask("ping", timeout=60))["run_id"] == runtime.run_id
    assert [str(error) for error in internal_errors] == [name]


async def test_events_that_can_not_be_told_end_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("told")

    monkeypatch.setattr(server.protocol, "event_line", fail)
    async with client(tmp_path) as (runtime, control):
        events = control.events("request.")

        async def call() -> None:
            while True:
                await runtime.pool().execute("whoami")

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(call)
            with anyio.fail_after(5), pytest.raises(ControlError) as raised:
                await anext(events)
            nursery.cancel_scope.cancel()
        assert raised.value.code == "internal"
    assert len(internal_errors) == 1
