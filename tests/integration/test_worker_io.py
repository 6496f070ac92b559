"""What a worker does with its socket while tools run, begin and end: driven frame by frame, without a pool."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.launch.spawn import SpawnLauncher
from snakepit_trio.wire import codec, frames
from snakepit_trio.wire.connection import RpcFailure
from tests.integration.test_wires import SERVICE, Exchange, connected, worker
from tests.until import appears

pytestmark = pytest.mark.anyio

SHORT = "tests.adapters.short"
#: One thread that does both; a thread for each; an event loop of each kind, whose sync tools run in a thread.
KINDS = {
    "lead": {},
    "threads": {"threads": 2},
    "trio": {"adapter": "tests.adapters.short_async", "worker_backend": "trio"},
    "asyncio": {"adapter": "tests.adapters.short_async", "worker_backend": "asyncio"},
}


@pytest.fixture(params=["trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """What is tested is the worker, of every kind; which event loop drives it from outside is of no importance."""
    return str(request.param)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a worker that runs its tools in one of the ways there are."""
    return {"adapter": SHORT, **KINDS[request.param]}


class Driver(Exchange):
    """An exchange with the words for what the tests do."""

    def __init__(self, connection: Any, pid: int) -> None:
        super().__init__(connection)
        self.connection = connection
        self.pid = pid
        self._last = 0

    def call(self, tool: str, params: dict[str, Any], **options: Any) -> int:
        self._last += 1
        self.send(frames.Call(self._last, tool=tool, payload=codec.encode(params), attempt=1, **options))
        return self._last

    def found(self, kind: type, id: int) -> list[Any]:
        name = "sequence" if kind is frames.Pong else "call_id" if kind in (frames.Emit, frames.HostCall) else "id"
        return [frame for frame in self.frames if isinstance(frame, kind) and getattr(frame, name) == id]

    async def reply(self, id: int) -> Any:
        await self.until(lambda: self.found(frames.Reply, id))
        (reply,) = self.found(frames.Reply, id)
        return reply

    async def value(self, id: int) -> Any:
        reply = await self.reply(id)
        assert reply.error is None, reply.error
        return codec.decode(reply.payload)

    async def pong(self, sequence: int) -> frames.Pong:
        self.send(frames.Ping(sequence))
        await self.until(lambda: self.found(frames.Pong, sequence))
        (pong,) = self.found(frames.Pong, sequence)
        return pong


@asynccontextmanager
async def driver(
    tmp_path: Path, backend: str, adapter: str = SHORT, made: type[Driver] = Driver, **options: Any
) -> AsyncIterator[Driver]:
    with anyio.fail_after(60):
        async with (
            worker(tmp_path, adapter=adapter, **options) as (address, process),
            connected(backend, address) as connection,
        ):
            yield made(connection, process.pid)


async def test_all_is_served_while_a_tool_is_busy(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    begun, until = tmp_path / "begun", tmp_path / "until"
    async with driver(tmp_path, anyio_backend, **kind) as host:
        # Short ones first: it is not the first call that must be seen to.
        for n in range(20):
            assert await host.value(host.call("echo", {"value": n})) == n
        held = host.call("hold", {"marker": str(begun), "until": str(until)})
        await appears(begun)
        for sequence in range(1, 20):
            assert list((await host.pong(sequence)).running) == [held]
        assert await host.connection.unary("/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
        assert not host.found(frames.Reply, held)
        until.touch()
        await host.reply(held)
        assert await host.value(host.call("echo", {"value": "after"})) == "after"


async def test_a_tool_that_keeps_the_gil_busy_is_told_of_its_cancel(
    kind: dict[str, Any], anyio_backend: str, tmp_path: Path
) -> None:
    async with driver(tmp_path, anyio_backend, **kind) as host:
        for _ in range(5):
            id = host.call("watched", {})
            await host.pong(id)
            host.send(frames.Cancel(id))
            assert (await host.reply(id)).error.code == "request_cancelled"
        assert await host.value(host.call("echo", {"value": 1})) == 1


async def test_calls_that_wait_in_the_worker(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    if kind.get("threads"):
        pytest.skip("for workers that run one call at a time")
    begun, until = tmp_path / "begun", tmp_path / "until"
    async with driver(tmp_path, anyio_backend, **kind) as host:
        hold = {"marker": str(begun), "until": str(until)}
        first = host.call("hold", hold)
        await appears(begun)
        marker = tmp_path / "never"
        cancelled = host.call("hold", {**hold, "marker": str(marker)})
        recalled = host.call("hold", {**hold, "marker": str(marker)})
        late = host.call("hold", {**hold, "marker": str(marker)}, timeout_us=30_000)
        others = [host.call("hold", hold), host.call("echo", {"value": "last"})]
        host.send(frames.Cancel(cancelled))
        host.send(frames.Cancel(recalled, recall=True))
        # Those are answered while the first one still runs.
        assert (await host.reply(cancelled)).error.code == "request_cancelled"
        assert (await host.reply(recalled)).undone == frames.NOT_BEGUN
        assert (await host.reply(late)).error.code == "request_timeout"
        assert not host.found(frames.Reply, first)
        # One that runs can't be taken back.
        host.send(frames.Cancel(first, recall=True))
        assert list((await host.pong(1)).running) == [first, *others]
        until.touch()
        (_, end), (begin, _) = await host.value(first), await host.value(others[0])
        assert end <= begin
        assert await host.value(others[1]) == "last"
        assert not marker.exists()


async def test_a_stop_ends_what_runs_and_refuses_what_waits_in_time(
    kind: dict[str, Any], anyio_backend: str, tmp_path: Path
) -> None:
    begun, until = tmp_path / "begun", tmp_path / "until"
    async with driver(tmp_path, anyio_backend, **kind) as host:
        hold = {"marker": str(begun), "until": str(until)}
        held = [host.call("hold", hold)]
        await appears(begun)
        held += [host.call("hold", hold), host.call("hold", hold)]
        host.send(frames.Stop(20_000_000))
        refused = host.call("echo", {"value": 1})
        assert (await host.reply(refused)).undone == frames.NOT_BEGUN
        until.touch()
        for id in held:
            assert len(await host.value(id)) == 2
        await host.until(lambda: host.ends)


async def test_a_sigterm_gives_back_what_has_not_begun_at_once(
    kind: dict[str, Any], anyio_backend: str, tmp_path: Path
) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    async with driver(tmp_path, anyio_backend, **kind) as host:
        hold = {"marker": str(begun), "until": str(go_on)}
        held = []
        for n in range(kind.get("threads", 1)):
            held.append(host.call("hold", {**hold, "marker": f"{begun}{n}"}))
            await appears(Path(f"{begun}{n}"))
        waiting = [host.call("hold", {**hold, "marker": str(tmp_path / "never")}) for _ in range(3)]
        await host.pong(1)
        os.kill(host.pid, signal.SIGTERM)
        await host.until(lambda: any(isinstance(frame, frames.Leaving) for frame in host.frames))
        waiting.append(host.call("echo", {"value": 1}))
        for id in waiting:
            assert (await host.reply(id)).undone == frames.NOT_BEGUN
        # At once, so before what came later is refused; those that run go on.
        assert [frame.id for frame in host.frames if isinstance(frame, frames.Reply)] == waiting
        go_on.touch()
        for id in held:
            assert len(await host.value(id)) == 2
        await host.until(lambda: host.ends)
        assert not (tmp_path / "never").exists()


async def test_big_messages_cross(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    async with driver(tmp_path, anyio_backend, **kind) as host:
        big = os.urandom(24 << 20)
        ids = [host.call("echo", {"value": big}) for _ in range(3)]
        for id in ids:
            assert await host.value(id) == big


async def test_answers_of_the_host_come_in_the_middle_of_a_tool(
    kind: dict[str, Any], anyio_backend: str, tmp_path: Path
) -> None:
    async with driver(tmp_path, anyio_backend, **kind) as host:

        async def answer(id: int, times: int) -> None:
            for number in range(times):
                await host.until(lambda number=number: len(host.found(frames.HostCall, id)) > number)
                asked = host.found(frames.HostCall, id)[number]
                params = codec.decode(asked.payload)
                # A beat between question and answer is answered as well.
                await host.pong(id * 1000 + number)
                host.send(frames.HostReply(asked.id, codec.encode(params["number"] * 10)))

        for tool, params in [
            ("ask", {"times": 5}),
            ("ask", {"times": 3, "pause": 0.02}),
            ("ask_from_threads", {"count": 3}),
        ]:
            id = host.call(tool, {"name": "x", **params})
            times = int(params.get("times") or params["count"])
            await answer(id, times)
            assert await host.value(id) == [number * 10 for number in range(times)]
        # A wait for the host ends with the caller, and with the deadline.
        id = host.call("ask", {"name": "x"})
        await host.until(lambda: host.found(frames.HostCall, id))
        host.send(frames.Cancel(id))
        assert (await host.reply(id)).error.code == "request_cancelled"
        id = host.call("ask", {"name": "x"}, timeout_us=50_000)
        assert (await host.reply(id)).error.code == "request_timeout"


async def test_what_a_busy_tool_has_said_arrives(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    until = tmp_path / "until"
    async with driver(tmp_path, anyio_backend, **kind) as host:
        id = host.call("tell", {"until": str(until)})
        await host.until(lambda: host.found(frames.Emit, id))
        assert not host.found(frames.Reply, id)
        until.touch()
        await host.reply(id)
        until.unlink()
        id = host.call("count", {"n": 3, "until": str(until)}, stream=True, credits=10)
        await host.until(lambda: host.found(frames.Chunk, id))
        assert len(host.found(frames.Chunk, id)) == 1
        until.touch()
        await host.reply(id)
        assert [codec.decode(chunk.payload) for chunk in host.found(frames.Chunk, id)] == [0, 1, 2]


async def test_a_short_call_does_not_wait_for_a_long_one_behind_it(anyio_backend: str, tmp_path: Path) -> None:
    begun, until = tmp_path / "begun", tmp_path / "until"
    async with driver(tmp_path, anyio_backend) as host:
        for _ in range(3):
            first = host.call("echo", {"value": 1})
            second = host.call("hold", {"marker": str(begun), "until": str(until)})
            assert await host.value(first) == 1
            assert not host.found(frames.Reply, second)
            until.touch()
            await host.reply(second)
            until.unlink()


async def test_a_long_stream_keeps_to_its_credits(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    async with driver(tmp_path, anyio_backend, **kind) as host:
        id = host.call("count", {"n": 2000}, stream=True, credits=7)
        given = 7
        while not host.found(frames.Reply, id):
            await host.until(
                lambda: len(host.found(frames.Chunk, id)) == min(given, 2000) or host.found(frames.Reply, id)  # noqa: B023
            )
            given += 97
            host.send(frames.Credit(id, 97))
        assert [codec.decode(chunk.payload) for chunk in host.found(frames.Chunk, id)] == list(range(2000))


async def test_a_tool_may_run_a_loop_of_its_own(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    async with driver(tmp_path, anyio_backend, **kind) as host:
        assert await host.value(host.call("own_loop", {})) == "ran"


async def test_inline_tools(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    begun, until = tmp_path / "begun", tmp_path / "until"
    async with driver(tmp_path, anyio_backend, **kind) as host:
        lead = kind == {"adapter": SHORT}
        value, thread = await host.value(host.call("quick", {"value": 5}))
        assert value == 5
        assert thread == ("MainThread" if lead else "snakepit-io")
        error = (await host.reply(host.call("quick_fail", {}))).error
        assert error.remote_types[0] == "builtins.LookupError"
        assert (await host.reply(host.call("quick_ask", {}))).error.code == "would_deadlock"
        if kind.get("threads"):
            return
        # With one thread it waits for its turn.
        held = host.call("hold", {"marker": str(begun), "until": str(until)})
        await appears(begun)
        waiting = host.call("quick", {"value": 6})
        await host.pong(1)
        assert not host.found(frames.Reply, waiting)
        until.touch()
        await host.reply(held)
        assert (await host.value(waiting))[0] == 6


async def test_plain_calls_beside_the_exchange(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    from snakepit_trio.wire.generated.snakepit.v1 import ExecuteRequest, ExecuteResponse
    from snakepit_trio.wire.generated.snakepit.v1 import Payload as PayloadMessage

    async with driver(tmp_path, anyio_backend, **kind) as host:
        params = codec.encode({"value": "plain"})
        request = ExecuteRequest(tool="echo", payload=PayloadMessage(encoding=2, data=params.data))
        for _ in range(3):
            id = host.call("echo", {"value": "framed"})
            reply = ExecuteResponse.parse(await host.connection.unary(SERVICE + "Execute", bytes(request)))
            assert reply.payload is not None
            assert codec.decode(frames.Payload(2, reply.payload.data)) == "plain"
            assert await host.value(id) == "framed"


async def test_a_worker_waits_for_a_host_but_not_for_an_exchange(anyio_backend: str, tmp_path: Path) -> None:
    from snakepit_trio.wire.generated.snakepit.v1 import ExecuteRequest, ExecuteResponse
    from snakepit_trio.wire.generated.snakepit.v1 import Payload as PayloadMessage

    params = codec.encode({"value": "plain"})
    request = bytes(ExecuteRequest(tool="echo", payload=PayloadMessage(encoding=2, data=params.data)))
    options = {"adapter": "tests.adapters.expecting"}
    with anyio.fail_after(60):
        async with worker(tmp_path, **options) as (served, _), connected(anyio_backend, served) as connection:
            assert ExecuteResponse.parse(await connection.unary(SERVICE + "Execute", request)).payload is not None
            # It has met its host first: when this one's time has passed, so has the other's.
            async with worker(tmp_path, **options) as (unserved, process):
                async with connected(anyio_backend, unserved, token="wrong") as stranger:
                    with pytest.raises(RpcFailure):
                        await stranger.unary(SERVICE + "Execute", request)
                    assert (await process.wait()).code == 0
            for _ in range(2):
                assert ExecuteResponse.parse(await connection.unary(SERVICE + "Execute", request)).payload is not None


async def test_a_worker_that_can_not_listen_says_so(kind: dict[str, Any], anyio_backend: str, tmp_path: Path) -> None:
    spec = WorkerSpec(
        worker_id="w", run_id="test", pool="p", token="t", **{**kind, "socket_dir": str(tmp_path / "missing")}
    )
    with anyio.fail_after(60):
        process = await SpawnLauncher().start(spec)
        try:
            report = await process.report()
            assert not report.address
            assert report.message.startswith("FileNotFoundError")
            status = await process.wait()
            assert status.code == 1
        finally:
            await process.aclose()


async def test_an_idle_worker_sleeps(anyio_backend: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with (
            worker(tmp_path, adapter=SHORT) as (address, process),
            connected(anyio_backend, address) as connection,
        ):
            host = Driver(connection, process.pid)
            for n in range(100):
                await host.value(host.call("echo", {"value": n}))
            pid = process.pid

            def switches() -> int:
                return sum(
                    int(line.split()[1])
                    for task in os.listdir(f"/proc/{pid}/task")
                    for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines()
                    if "ctxt_switches" in line
                )

            # Both threads come to rest, and stay there: a second look finds them where they were.
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                before = switches()
                await anyio.sleep(0.1)
                if switches() == before:
                    break
            else:
                pytest.fail("the worker never rests")


@pytest.mark.parametrize("bad", ["generator", "coroutine"])
def test_only_plain_functions_are_inline(bad: str) -> None:
    from snakepit_trio.worker.adapter import options_of
    from snakepit_trio.worker.toolbox import Tool

    if bad == "generator":

        @sp.tool(inline=True)
        def chosen() -> Any:
            yield 1

    else:

        @sp.tool(inline=True)
        async def chosen() -> Any:
            return 1

    options = options_of(chosen)
    assert options is not None
    with pytest.raises(sp.ConfigError, match="can't be inline") as caught:
        Tool(chosen, options)
    assert caught.value.details["key"] == "chosen"
