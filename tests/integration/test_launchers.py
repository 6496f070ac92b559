"""One contract over every launcher."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from snakepit_trio import _platform
from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.launch import template
from snakepit_trio.launch.base import ExitStatus, Launcher, ProcessBook, WorkerProcess, WorkerSpec
from snakepit_trio.launch.choice import local_launcher
from snakepit_trio.launch.fork_server import _ANSWER_TIME, ForkServerLauncher, _Template, _TemplateLost
from tests.forms import linux_form
from tests.until import gone

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["fork_server", "spawn"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    return local_launcher(request.param)


def spec(directory: Path, **options: Any) -> WorkerSpec:
    given: dict[str, Any] = {"adapter": "tests.adapters.basic", "socket_dir": str(directory), **options}
    return WorkerSpec(worker_id="w1", run_id="r1", pool="p", token="hush-hush", **given)


@asynccontextmanager
async def started(launcher: Launcher, spec: WorkerSpec) -> AsyncIterator[WorkerProcess]:
    process = await launcher.start(spec)
    try:
        yield process
    finally:
        await process.aclose()


async def test_start_report_and_stop(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            async with started(launcher, spec(tmp_path, env={"FOO": "bar"})) as process:
                report = await process.report()
                assert report.address.startswith("unix:")
                assert report.pid == process.pid
                found = psutil.Process(process.pid)
                assert os.getpgid(process.pid) == process.pid
                assert found.environ()["SNAKEPIT_RUN_ID"] == "r1"
                assert found.environ()["FOO"] == "bar"
                assert found.environ()["OMP_NUM_THREADS"] == "1"
                # The secret is in no place that others can read.
                assert "hush-hush" not in " ".join(found.cmdline())
                assert "hush-hush" not in str(found.environ())
                process.terminate()
                assert await process.wait() == ExitStatus(code=0)
                assert await process.wait() == ExitStatus(code=0)
                process.kill()
            await process.aclose()


async def test_how_it_ended(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            for number in (signal.SIGKILL, signal.SIGSEGV):
                async with started(launcher, spec(tmp_path)) as process:
                    await process.report()
                    os.kill(process.pid, number)
                    assert await process.wait() == ExitStatus(signal=number)


async def test_what_can_not_start_says_why(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            async with started(launcher, spec(tmp_path, adapter="tests.adapters.broken_setup")) as process:
                report = await process.report()
                assert report.code == "worker_startup"
                assert report.message == "RuntimeError: no such device"
                assert "broken_setup.py" in report.remote_traceback
                assert (await process.wait()).code == 1
            async with started(launcher, spec(tmp_path, adapter="tests.adapters.leaves_at_import")) as process:
                assert (await process.report()).message == "SystemExit: 9"


async def test_what_cpu_time_it_has_used(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            async with started(launcher, spec(tmp_path)) as process:
                await process.report()
                used = await process.cpu_time()
                times = psutil.Process(process.pid).cpu_times()
                assert used == pytest.approx(times.user + times.system, abs=0.1)
                process.kill()
                await process.wait()
                assert await process.cpu_time() is None


async def test_its_children_go_with_it(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            async with started(launcher, spec(tmp_path, adapter="tests.adapters.has_children")) as process:
                await process.report()
                (child,) = psutil.Process(process.pid).children()
                process.kill()
                await process.wait()
                await gone(child)


async def test_its_children_go_with_it_when_its_template_is_gone(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with local_launcher("fork_server") as launcher:
            async with started(launcher, spec(tmp_path, adapter="tests.adapters.has_children")) as process:
                await process.report()
                (child,) = psutil.Process(process.pid).children()
                template = psutil.Process(process.pid).parent()
                assert template is not None
                template.kill()
                await gone(template)
                process.kill()
                await process.wait()
                await gone(child)


async def test_a_worker_that_ends_by_itself_takes_its_children_along(launcher: Launcher, tmp_path: Path) -> None:
    """Its host may be killed before it has seen the end, and then there is nobody left to do it."""
    with anyio.fail_after(60):
        async with launcher:
            async with started(launcher, spec(tmp_path, adapter="tests.adapters.has_children")) as process:
                await process.report()
                (child,) = psutil.Process(process.pid).children()
                os.kill(process.pid, signal.SIGTERM)
                await gone(child)
                assert not process.ended
                assert await process.wait() == ExitStatus(code=0)


@linux_form("only the kernel ends a worker that is stopped")
async def test_a_worker_without_a_host_ends_before_it_has_even_looked(launcher: Launcher, tmp_path: Path) -> None:
    """What the kernel does needs nothing of the worker: a stopped one is gone, too."""
    with anyio.fail_after(60):
        async with launcher:
            async with started(launcher, spec(tmp_path, adapter="tests.adapters.hanging_setup")) as process:
                # Until it leads a group of its own, it is of its template's, and goes with that one's lifeline.
                while os.getpgid(process.pid) != process.pid:
                    await anyio.sleep(0.001)
                os.kill(process.pid, signal.SIGSTOP)
                process._descriptors.close(process._descriptors.lifeline_write)  # type: ignore[attr-defined]
                assert await process.wait() == ExitStatus(signal=signal.SIGKILL)


async def test_a_boot_message_longer_than_a_pipe(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            async with started(launcher, spec(tmp_path, own_env={"LONG": "x" * 300_000})) as process:
                assert (await process.report()).address


async def test_a_start_that_is_cancelled_leaves_nothing(launcher: Launcher, tmp_path: Path) -> None:
    async with launcher:
        process = await launcher.start(spec(tmp_path))
        await process.aclose()
        before = set(os.listdir("/proc/self/fd"))
        for step in range(8):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as nursery:

                    async def cancel_after(steps: int = step, scope: anyio.CancelScope = scope) -> None:
                        for _ in range(steps):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel_after)
                    async with started(launcher, spec(tmp_path)) as process:
                        await process.report()
        assert set(os.listdir("/proc/self/fd")) == before


async def test_another_directory_and_one_that_is_not_there(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            async with started(launcher, spec(tmp_path, cwd=str(tmp_path))) as process:
                await process.report()
                assert psutil.Process(process.pid).cwd() == str(tmp_path)
            with pytest.raises(WorkerStartupError):
                await launcher.start(spec(tmp_path, cwd=str(tmp_path / "none")))


async def test_an_adapter_with_threads_at_import_is_spawned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with anyio.fail_after(60):
        async with local_launcher("fork_server") as launcher:
            for _ in range(2):
                async with started(launcher, spec(tmp_path, adapter="tests.adapters.threads_at_import")) as process:
                    assert (await process.report()).address
                    assert psutil.Process(process.pid).ppid() == os.getpid()
    assert [r.levelname for r in caplog.records if r.name == "snakepit_trio.launch"] == ["WARNING"]


async def test_a_cancel_before_the_first_word_leaves_no_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _Template.start
    with anyio.CancelScope() as scope:

        def start(spec: WorkerSpec, book: ProcessBook) -> _Template:
            scope.cancel()
            return real(spec, book)

        monkeypatch.setattr(_Template, "start", start)
        async with local_launcher("fork_server") as launcher:
            await launcher.start(spec(tmp_path))
    assert scope.cancelled_caught
    assert not [c for c in psutil.Process().children() if "snakepit_trio.launch.template" in " ".join(c.cmdline())]


async def test_a_template_that_dies_is_replaced_and_its_workers_live_on(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with local_launcher("fork_server") as launcher:
            first = await launcher.start(spec(tmp_path))
            second = None
            try:
                await first.report()
                template = psutil.Process(first.pid).parent()
                assert template is not None
                assert template.pid != os.getpid()
                template.kill()
                second = await launcher.start(spec(tmp_path))
                assert (await second.report()).address
                assert psutil.pid_exists(first.pid)
                first.kill()
                # Its parent is gone: that it ended is known, how is not.
                assert await first.wait() in (ExitStatus(), ExitStatus(signal=9))
            finally:
                await first.aclose()
                if second is not None:
                    await second.aclose()


async def test_a_template_that_stops_answering_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snakepit_trio.launch.fork_server._ANSWER_TIME", 1.0)
    with anyio.fail_after(60):
        async with local_launcher("fork_server") as launcher:
            first = await launcher.start(spec(tmp_path))
            await first.report()
            template = psutil.Process(first.pid).parent()
            assert template is not None
            os.kill(template.pid, signal.SIGSTOP)
            with anyio.move_on_after(0.05):
                await launcher.start(spec(tmp_path))
            second = await launcher.start(spec(tmp_path))
            assert (await second.report()).address
            assert not template.is_running() or template.status() == psutil.STATUS_ZOMBIE


async def test_whoever_waits_for_a_template_that_is_closed_hears_so(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with local_launcher("fork_server") as launcher:
            assert isinstance(launcher, ForkServerLauncher)
            first = await launcher.start(spec(tmp_path))
            await first.report()
            ((kind, template),) = launcher._templates.items()
            os.kill(template._popen.pid, signal.SIGSTOP)
            heard = []

            async def ask(number: int) -> None:
                with pytest.raises(_TemplateLost):
                    await template.ask({"reap": number})
                heard.append(number)

            with anyio.fail_after(_ANSWER_TIME - 2):
                async with anyio.create_task_group() as nursery:
                    for number in range(3):
                        nursery.start_soon(ask, number)
                    await anyio.wait_all_tasks_blocked()
                    await template.aclose()
            assert sorted(heard) == [0, 1, 2]
            # Numbers of descriptors are free again, and nobody waits on them.
            second = await launcher.start(spec(tmp_path))
            assert (await second.report()).address
            assert launcher._templates[kind] is not template


async def test_its_block_ends_what_it_holds(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            process = await launcher.start(spec(tmp_path))
            report = await process.report()
            assert await process.report() == report
        assert process.ended
        assert not psutil.pid_exists(process.pid)


async def test_what_the_system_refuses_is_a_startup_error(launcher: Launcher, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with launcher:
            with pytest.raises(WorkerStartupError, match="null byte"):
                await launcher.start(spec(tmp_path, env={"A": "b\0c"}))


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """This process may open only so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is on numbers: gaps below are filled first.
    top = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] <= top:
        fillers.append(os.dup(fillers[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


async def test_a_start_without_enough_descriptors_leaves_nothing(launcher: Launcher, tmp_path: Path) -> None:
    """However many there are too few: the last start is the first that had enough."""
    with anyio.fail_after(90):
        async with launcher:
            process = None
            refused = 0
            while process is None:
                with few_descriptors(refused):
                    try:
                        process = await launcher.start(spec(tmp_path))
                    except WorkerStartupError:
                        refused += 1
                if process is None:
                    # A template, once it could be started, is kept for the next one.
                    assert len(psutil.Process().children(recursive=True)) <= isinstance(launcher, ForkServerLauncher)
            assert refused > 5
            # Its end needs none.
            with few_descriptors(0):
                await process.aclose()
            assert process.ended


async def test_a_process_without_a_descriptor_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> _platform.ProcessHandle:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(_platform, "open_child", refuse)
    with anyio.fail_after(60):
        async with local_launcher("spawn") as launcher:
            with pytest.raises(WorkerStartupError, match="too many open files"):
                await launcher.start(spec(tmp_path))
            monkeypatch.undo()


def test_a_fork_that_is_refused_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", refuse)
    ours, theirs = socket.socketpair()
    channel = template._Channel(theirs.detach())
    with ours, channel.socket:
        template._fork(channel, -1, {"worker": "w1"}, [os.dup(0), os.dup(0)], [])
        assert b"no more processes" in ours.recv(1000)


class Book:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    def reserve(self, process_id: str, kind: str, pool: str) -> None:
        self.seen.append(("reserve", kind))

    def begun(self, process_id: str, pid: int) -> None:
        self.seen.append(("begun",))

    def ended(self, process_id: str) -> None:
        self.seen.append(("ended",))


@pytest.mark.parametrize("method", ["fork_server", "spawn"])
async def test_each_process_is_in_the_book_from_before_its_start_to_its_end(method: str, tmp_path: Path) -> None:
    book = Book()
    with anyio.fail_after(60):
        async with local_launcher(method, book) as launcher:
            process = await launcher.start(spec(tmp_path))
            await process.report()
            template = [("reserve", "template"), ("begun",)] if method == "fork_server" else []
            assert book.seen == [("reserve", "worker"), *template, ("begun",)]
            await process.aclose()
            assert book.seen[-1] == ("ended",)
            book.seen.clear()
        assert book.seen == ([("ended",)] if template else [])
