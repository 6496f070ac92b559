"""When a host is killed, nothing of its workers is left, whatever they were doing."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from snakepit_trio import _platform
from snakepit_trio.supervision.run import open_run
from snakepit_trio.supervision.runs import list_runs
from tests.foreign.stubs import EXAMPLES, compile_protos
from tests.forms import linux_form

ROOT = Path(__file__).resolve().parents[2]
HOST = """
import anyio, sys
import snakepit_trio as sp

async def main():
    tool, method = sys.argv[1:]
    async with sp.open_pool("tests.adapters.has_children", size=3, start_method=method, heartbeat_while_busy=False) as pool:
        pids = [worker.pid for worker in pool.workers()]
        children = [await pool.execute("child") for _ in range(3)]
        async with anyio.create_task_group() as nursery:
            if tool != "idle":
                for _ in range(3):
                    nursery.start_soon(pool.execute, tool)
                while pool.stats().in_flight < 3:
                    await anyio.sleep(0.001)
                await anyio.sleep(0.05)
            print(*pids, *set(children), flush=True)
            await anyio.sleep_forever()

anyio.run(main, backend="trio")
"""


@pytest.mark.parametrize("method", ["fork_server", "spawn"])
@pytest.mark.parametrize(
    "tool",
    [
        "idle", "nap", "spin",
        pytest.param("hold_the_gil", marks=linux_form("a worker's thread can't watch while C code holds the GIL")),
    ],
)  # fmt: skip
def test_workers_and_grandchildren_are_gone_within_a_second(tool: str, method: str, tmp_path: Path) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, tool, method], stdout=subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}, text=True,
    )  # fmt: skip
    try:
        assert host.stdout is not None
        pids = [int(pid) for pid in host.stdout.readline().split()]
        assert len(pids) >= 4
        family = {child.pid for child in psutil.Process(host.pid).children(recursive=True)}
        watched = {pid: os.pidfd_open(pid) for pid in {*pids, *family}}
    finally:
        host.kill()
        killed = time.monotonic()
        host.wait()
        assert host.stdout is not None
        host.stdout.close()
    try:
        poll = select.poll()
        for fd in watched.values():
            poll.register(fd, select.POLLIN)
        left = set(watched.values())
        while left and time.monotonic() - killed < 5:
            for fd, _ in poll.poll(100):
                poll.unregister(fd)
                left.discard(fd)
        assert not left, [pid for pid, fd in watched.items() if fd in left]
        assert time.monotonic() - killed < 1
    finally:
        for fd in watched.values():
            os.close(fd)


FORKED = """
import multiprocessing, os, sys, time
import anyio
import snakepit_trio as sp

async def main():
    command = [sys.executable, *sys.argv[2:]]
    pools = [
        sp.PoolConfig(name="forked", adapter="tests.adapters.has_children", size=1),
        sp.PoolConfig(name="spawned", adapter="tests.adapters.has_children", size=1, start_method="spawn"),
        sp.PoolConfig(name="foreign", command=command, size=1, env={"PYTHONPATH": sys.argv[1]}),
    ]
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=sp.BridgeConfig())) as runtime:
        workers = [worker.pid for pool in runtime.pools.values() for worker in pool.workers()]
        def fork():
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            return pid
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        children = [fork(), await anyio.to_thread.run_sync(fork), child.pid]
        print(*workers, "-", *children, flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend=os.environ["BACKEND"])
"""


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_fork_of_the_host_keeps_nothing_alive(backend: str, tmp_path: Path) -> None:
    """Nor does it make the run look alive: the lock is free, and the next run clears up."""
    stubs, state = compile_protos(tmp_path), tmp_path / "state"
    path = os.pathsep.join([str(stubs), str(EXAMPLES)])
    host = subprocess.Popen(
        [sys.executable, "-c", FORKED, path, str(ROOT / "tests" / "foreign" / "odd_worker.py")],
        stdout=subprocess.PIPE, cwd=ROOT, text=True,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "SNAKEPIT_STATE_DIR": str(state),
            "BACKEND": backend,
        },
    )  # fmt: skip
    children: list[int] = []
    watched: list[int] = []
    try:
        assert host.stdout is not None
        workers, _, forks = host.stdout.readline().partition("-")
        children = [int(pid) for pid in forks.split()]
        assert (len(workers.split()), len(children)) == (3, 3)
        family = {child.pid for child in psutil.Process(host.pid).children(recursive=True)} - set(children)
        watched = [os.pidfd_open(pid) for pid in family]
        assert len(watched) >= 4, "the template is one of them"
        host.kill()
        host.wait()
        # In the portable form the foreign worker is the next run's to end.
        for fd in watched if _platform.FORM == "linux" else ():
            assert select.select([fd], [], [], 5)[0]
        assert all(psutil.pid_exists(pid) for pid in children)
        [run] = list_runs(state)
        assert not run.alive
        with open_run(str(state)) as following:
            assert [swept.run_id for swept in following.swept] == [run.run_id]
        assert not os.path.exists(run.run_dir)
        for fd in watched:
            assert select.select([fd], [], [], 5)[0]
    finally:
        host.kill()
        # They have its standard output, too.
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        host.communicate()
        for fd in watched:
            os.close(fd)


FOREIGN = """
import anyio, sys
import snakepit_trio as sp

async def main():
    command = [sys.executable, *sys.argv[2:]]
    async with sp.open_pool(command=command, size=1, env={"PYTHONPATH": sys.argv[1]}) as pool:
        child = await pool.execute("child")
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(pool.execute, "deaf", {"seconds": 60})
            while pool.stats().in_flight < 1:
                await anyio.sleep(0.001)
            print(pool.workers()[0].pid, child, flush=True)
            await anyio.sleep_forever()

anyio.run(main, backend="trio")
"""


@linux_form("nobody watches a foreign worker's lifeline for it; the next run ends it")
def test_a_foreign_worker_is_gone_too(tmp_path: Path) -> None:
    """It knows nothing of lifelines: the kernel ends its group."""
    stubs = compile_protos(tmp_path)
    path = os.pathsep.join([str(stubs), str(EXAMPLES)])
    host = subprocess.Popen(
        [sys.executable, "-c", FOREIGN, path, str(ROOT / "tests" / "foreign" / "odd_worker.py")],
        stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}, text=True,
    )  # fmt: skip
    try:
        assert host.stdout is not None
        watched = [os.pidfd_open(int(pid)) for pid in host.stdout.readline().split()]
        assert len(watched) == 2
    finally:
        host.kill()
        host.wait()
        assert host.stdout is not None
        host.stdout.close()
    try:
        for fd in watched:
            assert select.select([fd], [], [], 5)[0]
    finally:
        for fd in watched:
            os.close(fd)
