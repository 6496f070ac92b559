"""Workers in other languages: real processes that serve WorkerService with a stock gRPC library."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import snakepit_trio as sp
from tests.foreign.stubs import EXAMPLES, PROTOS, compile_protos, node_modules
from tests.until import gone, until

#: npm, uv and the like start the program, and give it none of their descriptors.
WRAPPER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"

pytestmark = pytest.mark.anyio
ODD = Path(__file__).parents[1] / "foreign" / "odd_worker.py"


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_protos(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(params=["python", "node"])
def foreign(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a pool of one example's workers."""
    if request.param == "node":
        modules = node_modules(request.config.cache.mkdir("foreign-node"))
        return {"command": ["node", str(EXAMPLES / "worker.js"), str(PROTOS)], "env": {"NODE_PATH": str(modules)}}
    stubs: Path = request.getfixturevalue("stubs")
    return {"command": [sys.executable, str(EXAMPLES / "worker.py")], "env": {"PYTHONPATH": str(stubs)}}


@pytest.fixture
def odd(stubs: Path) -> Callable[..., dict[str, Any]]:
    def make(*habits: str) -> dict[str, Any]:
        path = os.pathsep.join([str(stubs), str(EXAMPLES)])
        return {"command": [sys.executable, str(ODD), *habits], "env": {"PYTHONPATH": path}, "size": 1}

    return make


def pid(pool: sp.Pool) -> int:
    (worker,) = pool.workers()
    return worker.pid


@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_calls_streams_and_errors(
    foreign: dict[str, Any], transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "snakepit_trio.worker")
    async with sp.open_pool(**foreign, size=1, transport=transport) as pool:
        (worker,) = pool.workers()
        assert worker.address.startswith("unix:" if transport == "unix" else "tcp:127.0.0.1:")
        assert {"add", "boom", "nap", "count"} <= {tool.name for tool in pool.tools()}
        assert await pool.execute("add", {"a": 1, "b": 2}) == 3
        async with pool.stream("count", {"n": 300}) as chunks:
            assert [chunk["n"] async for chunk in chunks] == list(range(300))
        with pytest.raises(sp.ToolError, match="oh no") as failure:
            await pool.execute("boom", {"message": "oh no"})
        assert failure.value.remote_message == "oh no"
        with pytest.raises(sp.InvalidParameter, match="JSON has no bytes") as refused:
            await pool.execute("add", {"a": 1, "b": 2, "more": {"deep": [b"x"]}})
        assert refused.value.details["path"] == 'params["more"]["deep"][0]'
        with pytest.raises(sp.InvalidParameter, match="missing"):
            await pool.execute("add", {"a": 1})
        with pytest.raises(sp.ToolNotFound):
            await pool.execute("nothing")
        with pytest.raises(sp.StreamingUnsupported):
            await pool.execute("count", {"n": 1})
        # The generator is closed when its consumer leaves, and the seat comes back.
        async with pool.stream("count", {"n": 10_000_000}) as chunks:
            async for _ in chunks:
                break
        # What nobody waits for is stopped in the worker, and the worker goes on.
        for _ in range(2):
            with anyio.move_on_after(0.1) as scope:
                await pool.execute("nap", {"seconds": 60})
            assert scope.cancelled_caught
        with pytest.raises(sp.RequestTimeout):
            await pool.execute("nap", {"seconds": 60}, timeout=0.1)
        assert await pool.execute("add", {"a": 2, "b": 2}) == 4
        assert pid(pool) == worker.pid
        stats = pool.stats()
        assert stats.restarts == 0 and stats.in_flight == 0
    said = [record.getMessage() for record in caplog.records if record.name == "snakepit_trio.worker"]
    assert said.count("nap was cancelled") == 3


async def test_a_worker_that_dies_is_replaced(foreign: dict[str, Any]) -> None:
    async with sp.open_pool(**foreign, size=1) as pool:
        first = pid(pool)
        with pytest.raises(sp.WorkerCrashed) as crash:
            async with anyio.create_task_group() as nursery:

                async def kill() -> None:
                    await until(lambda: pool.stats().in_flight == 1)
                    os.kill(first, signal.SIGKILL)

                nursery.start_soon(kill)
                try:
                    await pool.execute("nap", {"seconds": 60})
                except sp.WorkerCrashed as exc:
                    caught = exc
            raise caught
        assert crash.value.details["signal"] == "SIGKILL"
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2
        assert pid(pool) != first


async def test_large_values_and_a_wrapper_around_the_program(foreign: dict[str, Any]) -> None:
    foreign["command"] = [sys.executable, "-c", WRAPPER, *foreign["command"]]
    async with sp.open_pool(**foreign, size=1) as pool:
        runtime = pool.runtime
        assert await pool.execute("length", {"text": "x" * 6_000_000}) == 6_000_000
        assert await pool.execute("add", {"a": 1, "b": 2}) == 3
    assert not runtime.killed


async def test_what_a_call_knows(odd: Callable[..., dict[str, Any]]) -> None:
    async with sp.open_pool(**odd()) as pool:
        async with pool.session("s-1") as session:
            seen = await session.execute("whoami", timeout=30, metadata={"k": "v"})
        assert seen["metadata"] == {"k": "v"} and seen["session_id"] == "s-1" and seen["attempt"] == 1
        assert seen["request_id"].startswith(pool.runtime.run_id)
        assert 25 < seen["time_left"] <= 30
        process = psutil.Process(pid(pool))
        token = pool.runtime._token
        assert token not in " ".join(process.cmdline())
        assert token not in str(process.environ())
        assert os.stat(process.environ()["SNAKEPIT_TOKEN_FILE"]).st_mode & 0o77 == 0


async def test_nobody_else_may_call(odd: Callable[..., dict[str, Any]]) -> None:
    import grpc

    async with sp.open_pool(**odd()) as pool:
        (worker,) = pool.workers()

        def ask() -> grpc.StatusCode:
            with grpc.insecure_channel(worker.address) as channel:
                call = channel.unary_unary("/snakepit.v1.WorkerService/Handshake")
                with pytest.raises(grpc.RpcError) as failure:
                    call(b"", timeout=10)
                return failure.value.code()

        assert await anyio.to_thread.run_sync(ask) is grpc.StatusCode.UNAUTHENTICATED


async def test_failures_have_types(odd: Callable[..., dict[str, Any]]) -> None:
    async with sp.open_pool(**odd()) as pool:
        with pytest.raises(sp.QuotaExceeded, match="too much") as typed:
            await pool.execute("typed")
        assert typed.value.details == {"quota": "disk", "limit": 5} and typed.value.retryable
        for status, kind in [
            ("INVALID_ARGUMENT", sp.InvalidParameter),
            ("NOT_FOUND", sp.ToolNotFound),
            ("UNIMPLEMENTED", sp.StreamingUnsupported),
            ("UNAUTHENTICATED", sp.AuthenticationFailed),
            ("DEADLINE_EXCEEDED", sp.RequestTimeout),
            ("CANCELLED", sp.RequestCancelled),
            ("ABORTED", sp.remote("grpc.ABORTED")),
            ("UNAVAILABLE", sp.remote("grpc.UNAVAILABLE")),
        ]:
            with pytest.raises(kind, match=r"as asked|its time"):
                await pool.execute("aborts", {"status": status})
        for how in ("not json", "no encoding", "unknown encoding", "no payload"):
            with pytest.raises(sp.InvalidPayload):
                await pool.execute("odd", {"how": how})
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2
        assert pool.stats().restarts == 0


async def test_a_slow_reader_holds_the_worker_back(odd: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    made = tmp_path / "made"
    n, size = 1000, 100_000
    async with sp.open_pool(**odd(), threads=2) as pool:
        async with pool.stream("blobs", {"n": n, "size": size, "path": str(made)}) as chunks:
            await anext(aiter(chunks))
            last = ""
            with anyio.fail_after(30):
                while last != (last := made.read_text()) or not last:
                    # Other calls of the same worker go on meanwhile.
                    assert await pool.execute("add", {"a": 1, "b": 1}) == 2
                    await anyio.sleep(0.3)
            assert int(last) < n / 2
            assert sum([len(chunk) async for chunk in chunks]) == (n - 1) * size


async def test_a_worker_that_tells_nobody_when_it_has_stopped(
    odd: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Its seat is given to nobody while its tool may run: it is replaced, or awaited."""

    async def begin_and_leave(pool: sp.Pool, seconds: float, marker: Path) -> None:
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(pool.execute, "deaf", {"seconds": seconds, "marker": str(marker)})
            await until(marker.exists)
            nursery.cancel_scope.cancel()

    async with sp.open_pool(**odd("no-settle"), cancel_grace=0.2) as pool:
        first = pid(pool)
        await begin_and_leave(pool, 60, tmp_path / "a")
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2
        assert pid(pool) != first
    async with sp.open_pool(**odd("no-settle"), on_cancel="abandon") as pool:
        first = pid(pool)
        started = anyio.current_time()
        await begin_and_leave(pool, 0.8, tmp_path / "b")
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2
        assert anyio.current_time() - started >= 0.8
        assert pid(pool) == first


async def test_a_tool_that_is_deaf_is_not_overlapped(odd: Callable[..., dict[str, Any]]) -> None:
    async with sp.open_pool(**odd(), cancel_grace=30) as pool:
        started = anyio.current_time()
        with pytest.raises(sp.RequestTimeout):
            await pool.execute("deaf", {"seconds": 1.2}, timeout=0.5)
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2
        assert anyio.current_time() - started >= 1.2


async def test_recycling_and_an_orderly_end(odd: Callable[..., dict[str, Any]]) -> None:
    async with sp.open_pool(**odd(), max_requests=2) as pool:
        runtime = pool.runtime
        first = pid(pool)
        for _ in range(2):
            assert (await pool.execute("whoami"))["pid"] == first
        await until(lambda: len(pool.workers()) == 1 and pid(pool) != first)
        (worker,) = pool.workers()
        # Of the one that has ended nothing is left.
        assert [place.name for place in runtime._run.run_dir.iterdir() if place.is_dir()] == [worker.id]
    assert not runtime.killed


async def test_its_family_goes_with_it(odd: Callable[..., dict[str, Any]]) -> None:
    async with sp.open_pool(**odd()) as pool:
        child = psutil.Process(await pool.execute("child"))
        with pytest.raises(sp.WorkerCrashed) as crash:
            await pool.execute("die")
        assert crash.value.details["exit_code"] == 3
        await gone(child)
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2


async def test_a_worker_that_hangs_is_replaced(odd: Callable[..., dict[str, Any]]) -> None:
    async with sp.open_pool(**odd(), heartbeat_interval=0.3, heartbeat_misses=2) as pool:
        await until(lambda: pool.workers()[0].last_heartbeat is not None)
        assert pool.workers()[0].rss > 1_000_000
        first = pid(pool)
        os.kill(first, signal.SIGSTOP)
        await until(lambda: pool.stats().ready == 1 and pid(pool) != first)
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2


async def test_a_worker_that_answers_nothing_is_alive_while_it_computes(odd: Callable[..., dict[str, Any]]) -> None:
    options = odd()
    options["command"] = [sys.executable, "-c", WRAPPER, *options["command"]]
    async with sp.open_pool(**options, heartbeat_interval=0.2, heartbeat_misses=2, health_interval=0.4) as pool:
        assert await pool.execute("compute", {"seconds": 1.5}) == "computed"
        assert pool.stats().restarts == 0


async def test_a_worker_that_reads_messagepack_gets_it(odd: Callable[..., dict[str, Any]]) -> None:
    async with sp.open_pool(**odd("msgpack")) as pool:
        # This one claims more than it can.
        with pytest.raises(sp.InvalidParameter, match="reads JSON only"):
            await pool.execute("add", {"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/nowhere/to/be/found"], "could not start /nowhere/to/be/found"),
        (["sh", "-c", "exit 7"], "exited with code 7"),
        (["sh", "-c", 'echo "error: no licence" > "$SNAKEPIT_READY_FILE"; sleep 60'], "no licence"),
        (["sh", "-c", 'echo "tcp:10.0.0.1:80" > "$SNAKEPIT_READY_FILE"; sleep 60'], "loopback"),
        (["sh", "-c", 'echo "hello" > "/dev/fd/$SNAKEPIT_READY_FD"; sleep 60'], "expected unix:PATH"),
        (["sh", "-c", 'echo "unix:/nowhere/sock" > "$SNAKEPIT_READY_FILE"; sleep 60'], "could not be reached"),
        (["sleep", "60"], "not ready within startup_timeout=0.5"),
    ],
)
async def test_what_can_not_start_says_why(command: list[str], reason: str) -> None:
    with pytest.raises(sp.WorkerStartupError, match=reason):
        async with sp.open_pool(command=command, size=1, startup_timeout=0.5 if command[0] == "sleep" else 20):
            pytest.fail("it opened")


@pytest.mark.parametrize(("habit", "reason"), [("version=9", "protocol 9"), ("bad-schema", "no JSON Schema")])
async def test_a_handshake_that_does_not_fit(odd: Callable[..., dict[str, Any]], habit: str, reason: str) -> None:
    with pytest.raises(sp.WorkerStartupError, match=reason):
        async with sp.open_pool(**odd(habit)):
            pytest.fail("it opened")


async def test_a_worker_that_does_not_end_is_killed(odd: Callable[..., dict[str, Any]]) -> None:
    async with sp.open_pool(**odd("deaf-to-sigterm", "no-health"), stop_grace=0.3) as pool:
        runtime = pool.runtime
        (worker,) = pool.workers()
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2
    assert runtime.killed == {"default": (worker.id,)}
