"""What an adapter's import has started ends with the pool, wherever it has gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

import snakepit_trio as sp
from snakepit_trio._platform import Identity, start_time
from snakepit_trio.launch.base import NoBook
from snakepit_trio.launch.helpers import Helpers
from tests.until import until

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = "tests.adapters.has_helpers"
KINDS = ["child", "session", "deaf", "daemon"]


class Started:
    """What the imports have started, from the file in which they write it down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def by(self, parent: int | None = None) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            by, kind, pid = line.split()
            if parent is None or int(by) == parent:
                found.setdefault(kind, []).append(int(pid))
        return found

    def alive(self, parent: int | None = None) -> list[str]:
        return [kind for kind, pids in self.by(parent).items() for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    found = Started(tmp_path / "started")
    yield found
    for pids in found.by().values():
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGKILL)


def env(started: Started, then: str = "") -> dict[str, str]:
    return {"HELPERS": str(started.path), "HELPERS_THEN": then}


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "then"), [("fork_server", ""), ("spawn", ""), ("fork_server", "thread")])
async def test_helpers_end_with_the_pool(method: str, then: str, started: Started) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ADAPTER, size=2, start_method=method, env=env(started, then)) as pool:
            workers = [worker.pid for worker in pool.workers()]
            # One import in the template; one in each worker where there is none, or where it can't be forked.
            imports = [None] if (method, then) == ("fork_server", "") else workers
            for parent in imports:
                assert started.alive(parent) == KINDS
            if method == "spawn":
                # Each worker's go with it.
                os.kill(workers[0], signal.SIGKILL)
                await until(lambda: not started.alive(workers[0]))
                assert started.alive(workers[1]) == KINDS
                await pool.wait_ready(timeout=30)
        assert started.alive() == []


@pytest.mark.anyio
async def test_workers_keep_the_helpers_of_a_template_that_is_lost(started: Started) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ADAPTER, size=1, env=env(started)) as pool:
            parent = int(started.path.read_text().split()[0])
            os.kill(parent, signal.SIGKILL)
            await pool.recycle(pool.workers()[0].id)
            # The new template has its own.
            assert started.alive(parent) == KINDS and len(started.alive()) == 2 * len(KINDS)
        assert started.alive() == []


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["fork_server", "spawn"])
@pytest.mark.parametrize("then", ["raise", "hang"])
async def test_helpers_of_an_import_that_fails_or_hangs(then: str, method: str, started: Started) -> None:
    options = {"startup_timeout": 3.0} if then == "hang" else {}
    with anyio.fail_after(60):
        with pytest.raises(sp.WorkerStartupError):
            async with sp.open_pool(ADAPTER, size=1, start_method=method, env=env(started, then), **options):
                pass
        assert set(KINDS) <= set(started.by())
        assert started.alive() == []


def test_the_next_run_ends_those_of_a_host_that_was_killed(started: Started, tmp_path: Path) -> None:
    program = """
import sys, trio
import snakepit_trio as sp

async def main():
    async with sp.open_pool("tests.adapters.has_helpers", size=1):
        print("up", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    variables = {
        **os.environ, **env(started), "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path),
        "SNAKEPIT_STATE_DIR": str(tmp_path / "state"),
    }  # fmt: skip
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, env=variables)
    assert host.stdout is not None
    assert host.stdout.readline() == b"up\n"
    assert started.alive() == KINDS
    host.kill()
    host.communicate()
    swept = subprocess.run(
        [sys.executable, "-m", "snakepit_trio", "cleanup"], check=True, capture_output=True, text=True, cwd=ROOT,
        env=variables, timeout=60,
    )  # fmt: skip
    assert started.alive() == [], swept.stdout


@pytest.mark.anyio
async def test_a_parent_is_not_believed_about_strangers() -> None:
    """A worker's code may say anything; its host may be root."""
    stranger = subprocess.Popen(["sleep", "600"])
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        helpers = Helpers(parent.pid, run_id="r", pool="p", book=NoBook())
        whole = [Identity(pid, start_time(pid) or 0) for pid in (stranger.pid, os.getpid(), 1, child)]
        helpers.told([*whole, (child, 1), (-1, 1), (2**80, 1), (0, 0), (1,), ("x", "y"), ()])  # type: ignore[list-item]
        assert len(helpers) == 1
        with anyio.fail_after(10):
            await helpers.end()
        assert not is_alive(child) and stranger.poll() is None
    finally:
        for process in (parent, stranger):
            process.kill()
            process.communicate()
