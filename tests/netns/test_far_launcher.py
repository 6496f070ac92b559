"""The launcher that docs/guides/launchers.md shows in full: it keeps the promises that the page makes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import snakepit_trio as sp
from snakepit_trio.launchers import ExitStatus, WorkerSpec
from snakepit_trio.wire.memory import THRESHOLD
from tests.integration.test_shared_memory import memories, through
from tests.netns.far import far_launcher

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif("SNAKEPIT_TEST_NETNS" not in os.environ, reason="takes a minute: nox -s netns"),
]

HERE = [sys.executable, "-m", "far_node", "127.0.0.1"]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Any]:
    with far_launcher(tmp_path) as module:
        yield module


def spec(**options: Any) -> WorkerSpec:
    given: dict[str, Any] = {"adapter": "tests.adapters.basic", **options}
    return WorkerSpec(worker_id="w1", run_id="r1", pool="p", token="hush-hush", **given)


async def test_start_report_and_how_it_ended(far: Any) -> None:
    with anyio.fail_after(60):
        async with far.FarLauncher(HERE, "r1") as launcher:
            process = await launcher.start(spec(env={"FOO": "bar"}))
            report = await process.report()
            assert report == await process.report()
            assert report.address.startswith("tcp:127.0.0.1:")
            worker = psutil.Process(report.pid)
            assert worker.environ()["FOO"] == "bar"
            for one in (worker, worker.parent()):
                assert one is not None
                assert "hush-hush" not in " ".join(one.cmdline()) + str(one.environ())
            process.terminate()
            # Whoever waits is told, however many wait.
            async with anyio.create_task_group() as nursery:
                for _ in range(2):
                    nursery.start_soon(process.wait)
            assert await process.wait() == ExitStatus(code=0)
            await process.aclose()
            await process.aclose()

            process = await launcher.start(spec())
            os.kill((await process.report()).pid, signal.SIGSEGV)
            assert await process.wait() == ExitStatus(signal=signal.SIGSEGV)

            process = await launcher.start(spec(adapter="tests.adapters.broken_setup"))
            report = await process.report()
            assert (report.code, report.message) == ("worker_startup", "RuntimeError: no such device")
            process = await launcher.start(spec(python="/nowhere/python"))
            assert "could not start /nowhere/python" in (await process.report()).message
        with pytest.raises(sp.WorkerStartupError, match="could not run /nowhere/srun"):
            await far.FarLauncher(["/nowhere/srun"], "r1").start(spec())


async def test_the_worker_ends_with_its_supervisor_and_with_its_host(far: Any) -> None:
    with anyio.fail_after(60):
        async with far.FarLauncher(HERE, "r1") as launcher:
            for cut in ("supervisor", "host"):
                process = await launcher.start(spec(adapter="tests.adapters.has_children"))
                worker = psutil.Process((await process.report()).pid)
                family = [worker, *worker.children()]
                if cut == "supervisor":
                    os.kill(process._process.pid, signal.SIGKILL)
                    assert (await process.wait()).lost == "its supervisor is gone"
                else:
                    # What the system does when the host is gone.
                    await process._process.stdin.aclose()
                    await process.wait()
                while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family):
                    await anyio.sleep(0.005)
                await process.aclose()


async def test_a_start_that_is_cancelled_leaves_nothing(far: Any) -> None:
    with anyio.fail_after(60):
        async with far.FarLauncher(HERE, "r1") as launcher:
            for steps in range(0, 12, 3):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as nursery:

                        async def cancel_after(steps: int = steps, scope: anyio.CancelScope = scope) -> None:
                            for _ in range(steps):
                                await anyio.lowlevel.checkpoint()
                            scope.cancel()

                        nursery.start_soon(cancel_after)
                        process = await launcher.start(spec())
                        try:
                            await process.report()
                        finally:
                            await process.aclose()
                assert scope.cancelled_caught
                assert not launcher._held
        assert not [child for child in psutil.Process().children() if "far_node" in " ".join(child.cmdline())]


async def test_a_pool_over_it(far: Any) -> None:
    adapter = "tests.adapters.basic"
    with anyio.fail_after(60):
        async with sp.open_pool(adapter, size=1, launcher=far.far_workers(HERE)) as pool:
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            (worker,) = pool.workers()
            os.kill(worker.pid, signal.SIGKILL)
            assert await pool.execute("add", {"a": 1, "b": 2}, idempotent=True) == 3
            assert pool.workers()[0].pid != worker.pid
        assert not psutil.pid_exists(worker.pid)
        with pytest.raises(sp.WorkerStartupError, match="its supervisor is gone before it was ready"):
            async with sp.open_pool(adapter, size=1, launcher=far.far_workers(["false"])):
                pass


async def test_shared_memory_where_it_is_the_same_and_only_there(far: Any) -> None:
    """Nobody is told whether a worker is on this machine: the handshake finds out."""
    value = os.urandom(4 * THRESHOLD)
    # Processes have other numbers there, as on another machine.
    elsewhere = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *HERE]
    with anyio.fail_after(100):
        for command, shared in ((HERE, True), (elsewhere, False)):
            launcher = far.far_workers(command)
            async with sp.open_pool("tests.adapters.basic", size=1, startup_timeout=60, launcher=launcher) as pool:
                assert await pool.execute("echo", {"value": value}) == value
                assert [through(memory) for memory in memories(pool)] == [(1, 1) if shared else (0, 0)]
