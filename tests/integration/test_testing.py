"""The pytest plugin, in the test run of an application."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snakepit_trio.testing import leaks, no_leaks

ROOT = Path(__file__).resolve().parents[2]
SUMS = """
import time
import snakepit_trio as sp

@sp.tool
def add(a: int, b: int) -> int:
    return a + b

@sp.tool(idempotent=True)
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
"""
TESTS = """
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.snakepit_pool("sums")]

async def test_a_call(snakepit_leaks, snakepit_pool):
    assert await snakepit_pool.execute("add", {"a": 1, "b": 2}) == 3
    assert snakepit_pool.stats().size == 1

@pytest.mark.snakepit_pool(size=2, name="sums")
async def test_options_of_the_nearest_mark(snakepit_pool):
    assert (snakepit_pool.name, snakepit_pool.stats().size) == ("sums", 2)

@pytest.mark.snakepit_pool(heartbeat_interval=0.5, heartbeat_misses=3)
async def test_faults(snakepit_leaks, snakepit_pool, snakepit_faults):
    pool, faults = snakepit_pool, snakepit_faults
    for fault in (faults.kill, faults.stop, faults.drop_connection):
        async with pool.runtime.events.subscribe("worker.gone") as events:
            worker = fault()
            event = await events.__anext__()
            assert event.metadata["worker_id"] == worker.id
            assert event.metadata["reason"] in ("killed", "heartbeat", "connection_lost")
        await pool.wait_ready()
    with pytest.raises(ProcessLookupError):
        faults.kill("nobody")

async def test_slow(snakepit_leaks, snakepit_pool, snakepit_faults):
    async with snakepit_faults.slow(share=0.5) as worker:
        assert await snakepit_pool.execute("add", {"a": 1, "b": 2}) == 3
    assert [w.id for w in snakepit_pool.workers()] == [worker.id]
"""
WRONG = """
import os, pytest

@pytest.mark.anyio
async def test_without_a_mark(snakepit_pool):
    pass

@pytest.mark.anyio
@pytest.mark.snakepit_pool("one", "another", adapter="third")
async def test_with_several(snakepit_pool):
    pass

@pytest.mark.anyio
@pytest.mark.snakepit_pool("sums", sise=2)
async def test_with_a_misspelt_option(snakepit_pool):
    pass

def test_a_leak(snakepit_leaks):
    os.open(os.devnull, os.O_RDONLY)

def test_asks_for_nothing():
    pass
"""


def run(place: Path, *arguments: str, plugins: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    # No others, whatever is installed.
    plugin = [
        word for name in ("anyio.pytest_plugin", "snakepit_trio.testing.plugin", *plugins) for word in ("-p", name)
    ]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *arguments],
        cwd=place, capture_output=True, text=True, timeout=110, check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(place), str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
    )  # fmt: skip


def test_the_fixtures_on_both_event_loops(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(SUMS)
    (tmp_path / "test_sums.py").write_text(TESTS)
    done = run(tmp_path, "--strict-markers", "-W", "error")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"sums.py", "test_sums.py"}


_USE = """
    assert await {pool}.execute("add", {{"a": 1, "b": 2}}) == 3
    async with {pool}.session() as session:
        assert await session.execute("add", {{"a": 1, "b": 2}}) == 3
"""
_FUNCTION_SCOPE = """
import pytest

{head}

@pytest.mark.snakepit_pool("sums")
async def test_first(snakepit_leaks, snakepit_pool, snakepit_faults):{use}

@pytest.mark.snakepit_pool("sums", size=2)
async def test_second(snakepit_leaks, snakepit_pool):{use}
    assert snakepit_pool.stats().size == 2
"""
_SESSION_SCOPE = """
import pytest
from snakepit_trio.testing import open_test_pool

{head}

@{fixture}
async def sums():
    async with open_test_pool("sums") as pool:
        yield pool

pids = set()

async def test_first(sums):{use}
    pids.update(worker.pid for worker in sums.workers())

async def test_second(sums):{use}
    pids.update(worker.pid for worker in sums.workers())
    assert len(pids) == 1
"""
_ANYIO_SESSION = """
@pytest.fixture(scope="session", params=["trio", "asyncio"])
def anyio_backend(request):
    pids.clear()
    return request.param

pytestmark = pytest.mark.anyio
"""
_ASYNCIO_SESSION = 'pytestmark = pytest.mark.asyncio(loop_scope="session")'
_SESSION_FIXTURE = 'pytest.fixture(scope="session")'


@pytest.mark.skipif(sys.platform != "linux", reason="the leak check reads /proc")
@pytest.mark.parametrize(
    ("plugin", "options", "text", "passed"),
    [
        pytest.param(
            None,
            [],
            _SESSION_SCOPE.format(head=_ANYIO_SESSION, fixture=_SESSION_FIXTURE, use=_USE.format(pool="sums")),
            4,
            id="anyio-session",
        ),
        pytest.param(
            "pytest_trio.plugin",
            ["-o", "trio_mode=true"],
            _FUNCTION_SCOPE.format(head="", use=_USE.format(pool="snakepit_pool")),
            2,
            id="pytest-trio",
        ),
        pytest.param(
            "pytest_asyncio.plugin",
            ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"],
            _FUNCTION_SCOPE.format(head="", use=_USE.format(pool="snakepit_pool")),
            2,
            id="pytest-asyncio",
        ),
        pytest.param(
            "pytest_asyncio.plugin",
            ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=session"],
            _SESSION_SCOPE.format(head=_ASYNCIO_SESSION, fixture=_SESSION_FIXTURE, use=_USE.format(pool="sums")),
            2,
            id="pytest-asyncio-session",
        ),
        pytest.param(
            "pytest_asyncio.plugin",
            ["-o", "asyncio_mode=strict", "-o", "asyncio_default_fixture_loop_scope=function"],
            _SESSION_SCOPE.format(
                head="import pytest_asyncio\n" + _ASYNCIO_SESSION,
                fixture='pytest_asyncio.fixture(scope="session", loop_scope="session")',
                use=_USE.format(pool="sums"),
            ),
            2,
            id="pytest-asyncio-strict",
        ),
    ],
)
def test_whichever_plugin_runs_the_event_loop(
    tmp_path: Path, plugin: str | None, options: list[str], text: str, passed: int
) -> None:
    if plugin is not None:
        pytest.importorskip(plugin.partition(".")[0])
    (tmp_path / "sums.py").write_text(SUMS)
    (tmp_path / "test_sums.py").write_text(text)
    done = run(tmp_path, "-W", "error", *options, plugins=() if plugin is None else (plugin,))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{passed} passed" in done.stdout


def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text(WRONG)
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.count('say which adapter: @pytest.mark.snakepit_pool("my_module:Math", size=2)') >= 4
    assert "@pytest.mark.snakepit_pool: sise: not an option of PoolConfig; did you mean 'size'?" in done.stdout
    assert "left behind: file descriptor" in done.stdout
    assert "/dev/null" in done.stdout


def test_the_plugin_imports_nothing_before_it_is_asked() -> None:
    code = (
        "import sys, snakepit_trio.testing.plugin\n"
        "sys.exit(repr([m for m in sys.modules if m.split('.')[0] in ('anyio', 'trio', 'attrs', 'psutil')]) "
        "if any(m.startswith('snakepit_trio.runtime') for m in sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_directories_of_other_programs_runs_are_no_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with no_leaks():
        (tmp_path / f"snakepit-0123456789-{os.getppid()}-other").mkdir()
    with pytest.raises(AssertionError, match="temporary directory snakepit-0123456789"), no_leaks():
        (tmp_path / f"snakepit-0123456789-{os.getpid()}-mine").mkdir()
    # This module's own check looks into the same directory.
    (tmp_path / f"snakepit-0123456789-{os.getpid()}-mine").rmdir()


def test_no_leaks_lets_a_failure_through() -> None:
    with pytest.raises(ValueError, match="mine"), no_leaks():
        raise ValueError("mine")


class Cycle:
    """Goes only by the collector, and a descriptor with it."""

    def __init__(self) -> None:
        self.itself = self
        self.descriptor = -1

    def __del__(self) -> None:
        os.close(self.descriptor)


@pytest.fixture
def nothing_frozen() -> Iterator[None]:
    """This module's own check has frozen all that there is."""
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("nothing_frozen")
@pytest.mark.parametrize("older", [False, True])
def test_what_garbage_holds_is_no_leak(older: bool) -> None:
    cycle = Cycle() if older else None
    with no_leaks():
        cycle = cycle or Cycle()
        cycle.descriptor = os.open(os.devnull, os.O_RDONLY)
        cycle = None


@pytest.mark.usefixtures("nothing_frozen")
def test_what_an_application_has_frozen_stays_so() -> None:
    with no_leaks():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.freeze()
    frozen = gc.get_freeze_count()
    with no_leaks():
        pass
    assert gc.get_freeze_count() == frozen


class Ending(threading.Thread):
    """Ends when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__(name="ending")
        self.awaited = threading.Event()

    def run(self) -> None:
        self.awaited.wait()

    def join(self, timeout: float | None = None) -> None:
        self.awaited.set()
        super().join(timeout)


def test_a_thread_that_is_ending_is_not_left_behind() -> None:
    thread = Ending()
    try:
        with no_leaks():
            thread.start()
    finally:
        thread.join()


def test_a_thread_that_goes_on_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_ENDING", 0.01)
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="goes on")
    with pytest.raises(AssertionError, match="left behind: thread goes on"), no_leaks():
        thread.start()
    end.set()
    thread.join()
