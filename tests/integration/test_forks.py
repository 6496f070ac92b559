"""What the application forks, in its host or in its tools, is neither of them."""

from __future__ import annotations

import ast
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import snakepit_trio as sp
from snakepit_trio.supervision.runs import list_runs
from tests.until import gone, until

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]
FORKING = "tests.adapters.forking"
ASYNC = "tests.adapters.forking_async"


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def in_child(check: Callable[[], Any], place: Path) -> Any:
    """What a fork of this process makes of a check; plain values."""
    pid = os.fork()
    if pid == 0:
        try:
            said = repr(check())
        except BaseException as exc:
            said = repr(f"{type(exc).__name__}: {exc}")
        try:
            (place / f"{os.getpid()}").write_text(said)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return ast.literal_eval((place / f"{pid}").read_text())


def exit_code(pid: int) -> int:
    """How a child has ended; waits for that."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- the host's forks --------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_a_fork_of_the_host_has_nothing_of_its_runtime(transport: str, tmp_path: Path) -> None:
    """But for the files of its databases: their locks pass to no fork, and SQLite wants them left alone."""
    config = sp.RuntimeConfig(
        pools=[
            sp.PoolConfig(name=method, adapter="tests.adapters.basic", size=1, start_method=method, transport=transport)
            for method in ("fork_server", "spawn")
        ],
        state_dir=str(tmp_path / "state"),
        store=f"sqlite:{tmp_path / 'store.sqlite3'}",
        bridge=sp.BridgeConfig(address="tcp:127.0.0.1:0" if transport == "tcp" else None),
        metrics=sp.MetricsConfig(address="tcp:127.0.0.1:0"),
    )
    before = descriptors()
    async with sp.open_runtime(config) as runtime:
        (run,) = list_runs(tmp_path / "state")
        bridge, metrics = runtime.bridge, runtime.metrics
        assert bridge is not None
        assert metrics is not None
        assert metrics.address is not None
        operator, scraper = socket.socket(socket.AF_UNIX), socket.socket()
        with operator, scraper:
            operator.connect(run.control)
            scraper.connect(("127.0.0.1", int(metrics.address.rpartition(":")[2])))
            async with sp.connect(bridge.address, token=bridge.token, pool="spawn") as client:
                await client.execute("echo", {"value": b"x" * 1_000_000})
                await runtime.pool("fork_server").execute("echo", {"value": b"x" * 1_000_000})
                # Both are let in before there is an answer, and a client.
                operator.sendall(b'{"op": "status", "id": 1}\n')
                await anyio.wait_readable(operator)
                await until(lambda: metrics._clients == 1)

                def left() -> list[str]:
                    own = {os.readlink(f"/proc/self/fd/{sock.fileno()}") for sock in (operator, scraper)}
                    return [
                        target
                        for fd, target in descriptors().items()
                        if before.get(fd) != target and target not in own and "sqlite3" not in target
                    ]

                assert len(left()) > 20, "there was nothing to lose"
                found = in_child(left, tmp_path)
                assert [target for target in found if target != "/dev/null" and "/proc" not in target] == []
                for pool in runtime.pools.values():
                    assert await pool.execute("echo", {"value": 1}) == 1
                assert await client.execute("echo", {"value": 2}) == 2


async def test_a_fork_of_the_host_has_no_pool_and_ends_where_the_runtime_does(
    anyio_backend_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = sp.RuntimeConfig(
        pools=[sp.PoolConfig(adapter="tests.adapters.basic", size=1)], state_dir=str(tmp_path / "state")
    )
    leaves: list[tuple[Callable[[], object], int]] = [(lambda: sys.exit(5), 5), (lambda: 1 / 0, 1)]
    me = os.getpid()
    for leave, code in leaves:
        try:
            async with sp.open_runtime(config) as runtime:
                pool = runtime.pool()
                workers = pool.workers()
                said = in_child(lambda pool=pool: _begin(pool.execute("add", {"a": 1, "b": 2})), tmp_path)  # type: ignore[misc]
                # asyncio has no running loop there, so nothing of the pool is looked at.
                wanted = "PoolClosed: pool 'default' belongs to the process that this one is a fork of"
                assert said == wanted or (anyio_backend_name == "asyncio" and said.startswith("WrongContext"))
                pid = os.fork()
                if pid == 0:
                    leave()
                else:
                    assert exit_code(pid) == code
                    # It has ended nothing and removed nothing.
                    assert await pool.execute("add", {"a": 1, "b": 2}) == 3
                    assert pool.workers() == workers or [w.pid for w in pool.workers()] == [w.pid for w in workers]
                    [run] = list_runs(tmp_path / "state")
                    assert run.alive
                    assert os.path.exists(run.control)
                    assert os.path.isdir(run.run_dir)
        finally:
            if os.getpid() != me:
                os._exit(99)  # It should not have come here.
    assert "ZeroDivisionError" in capfd.readouterr().err


def _begin(coroutine: Any) -> Any:
    """What a coroutine comes to before it waits for anything."""
    try:
        coroutine.send(None)
    finally:
        coroutine.close()
    return "it waits"


@pytest.mark.parametrize("tool", ["fork_in_a_thread", "fork_in_the_loop"])
async def test_what_a_host_tool_forks_ends_with_the_tool(tool: str) -> None:
    async with sp.open_runtime(
        sp.RuntimeConfig(pools=[sp.PoolConfig(adapter="tests.adapters.nested", size=1)])
    ) as runtime:
        me = os.getpid()

        def fork() -> int:
            pid = os.fork()
            if pid == 0:
                return 0
            return exit_code(pid)

        def fork_in_a_thread() -> int:
            return fork()

        async def fork_in_the_loop() -> int:
            return fork()

        runtime.tools.register(
            "fork", {"fork_in_a_thread": fork_in_a_thread, "fork_in_the_loop": fork_in_the_loop}[tool]
        )
        try:
            assert await runtime.pool().execute("ask_sync", {"name": "fork", "params": {}}) == 0
            assert await runtime.pool().execute("ask_sync", {"name": "fork", "params": {}}) == 0
        finally:
            if os.getpid() != me:
                os._exit(99)


# ---- the forks of tools ------------------------------------------------------------------------------


#: What happens in workers does not depend on the host's event loop.
one_host = pytest.mark.parametrize("anyio_backend", ["trio"])
CODES = [("return", 0), ("raise", 1), ("exit", 7)]


@one_host
@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (FORKING, {}),
        (FORKING, {"threads": 2, "start_method": "spawn", "transport": "tcp"}),
        (ASYNC, {"worker_backend": "trio"}),
        (ASYNC, {"worker_backend": "asyncio"}),
    ],
    ids=["one thread", "threads", "trio", "asyncio"],
)
async def test_a_child_that_comes_out_of_a_tool_does_not_speak_for_its_worker(
    adapter: str, options: dict[str, Any]
) -> None:
    async with sp.open_pool(adapter, size=1, **options) as pool:
        [worker] = pool.workers()
        for how, code in CODES:
            wanted = {"parent": worker.pid, "code": code}
            for tool in ["come_back", *(["inline"] if adapter == FORKING else [])]:
                assert await pool.execute(tool, {"how": how}) == wanted
            async with pool.stream("stream", {"how": how}) as chunks:
                assert [chunk async for chunk in chunks] == ["first", wanted, "last"]
        [still] = pool.workers()
        assert (still.pid, still.requests) == (worker.pid, 9 if adapter == FORKING else 6)
        assert pool.stats().late_replies == 0


@one_host
@pytest.mark.parametrize("options", [{}, {"threads": 2}], ids=["one thread", "threads"])
async def test_a_child_of_a_tool_has_nothing_of_its_worker(options: dict[str, Any]) -> None:
    async with sp.open_pool(FORKING, size=1, **options) as pool:
        await pool.execute("come_back", {"how": "return"})
        found = await pool.execute("what_a_child_has")
        # Its streams and its own pipe; an event loop's way to wake itself, and to wait.
        for target in ("/dev/null", "anon_inode:[eventpoll]"):
            assert target in found
        pipes = {target for target in found if target.startswith("pipe:")}
        sockets = [target for target in found if target.startswith("socket:")]
        files = [
            target for target in found if target.startswith("/") and target != "/dev/null" and "/proc/" not in target
        ]
        assert (len(pipes), len(sockets), files) == (3, 2, []), found
        # And it ends by what its worker handles.
        assert await pool.execute("terminate_a_child") == -signal.SIGTERM


@one_host
async def test_a_child_of_a_tool_calls_no_host_and_tells_no_event() -> None:
    called = []
    async with sp.open_runtime(sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=FORKING, size=1)])) as runtime:
        runtime.tools.register("anything", lambda: called.append(1))
        async with runtime.events.subscribe("from.") as events:
            assert await runtime.pool().execute("speak_from_a_child") == 7
            assert events.receive_nowait() is None
        assert called == []


@one_host
async def test_a_child_that_outlives_its_worker_holds_nothing_up() -> None:
    async with sp.open_pool(FORKING, size=1) as pool:
        child = await pool.execute("leave_one_behind")
        try:
            [worker] = pool.workers()
            with anyio.fail_after(30):
                os.kill(worker.pid, signal.SIGKILL)
                await gone(psutil.Process(worker.pid))
                assert (await pool.execute("come_back", {"how": "return"}))["code"] == 0
        finally:
            os.kill(child, signal.SIGKILL)


@one_host
@pytest.mark.parametrize(
    ("adapter", "start_method"), [(f"{FORKING}:InHooks", "fork_server"), (f"{ASYNC}:InHooks", "spawn")]
)
async def test_children_of_hooks_end_with_them(adapter: str, start_method: str) -> None:
    async with sp.open_pool(adapter, size=1, start_method=start_method, health_interval=1.5) as pool:
        with anyio.fail_after(30):
            [worker] = pool.workers()
            told: list[Any] = []
            while len(told) < 4:
                told = await pool.execute("told")
        codes = [1, 0, 7, 0] if adapter.startswith(f"{FORKING}:") else [0, 1, 7, 7]
        assert told[:4] == [{"parent": worker.pid, "code": code} for code in codes]
        [still] = pool.workers()
        assert still.pid == worker.pid
        assert not psutil.Process(worker.pid).children()
    assert pool.runtime.killed == {}


@one_host
@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
async def test_a_child_of_an_import_does_not_go_on_as_a_worker(start_method: str) -> None:
    async with sp.open_pool("tests.adapters.forks_at_import", size=1, start_method=start_method) as pool:
        code, importer = await pool.execute("told")
        assert code == {"parent": importer, "code": 0}
        [worker] = pool.workers()
        assert (importer == worker.pid) == (start_method == "spawn")
