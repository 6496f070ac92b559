"""Workers are watched, replaced, recycled and stopped; the pool tells how it stands."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import snakepit_trio as sp
from snakepit_trio.supervision import exchange_link
from snakepit_trio.wire.frames import Chunk
from tests.until import until

pytestmark = pytest.mark.anyio

UNRULY = "tests.adapters.unruly"
ROOT = Path(__file__).resolve().parents[2]


async def test_a_frozen_worker_is_found_and_replaced() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=1, heartbeat_interval=0.1, heartbeat_misses=6) as pool:
            (before,) = pool.workers()
            started = anyio.current_time()
            with pytest.raises(sp.WorkerCrashed) as caught:
                await pool.execute("freeze")
            assert caught.value.details["reason"] == "heartbeat"
            assert anyio.current_time() - started < 5
            assert await pool.execute("pid") != before.pid
            # One that is idle, too.
            (now,) = pool.workers()
            os.kill(now.pid, signal.SIGSTOP)
            await until(lambda: pool.workers()[0].pid != now.pid)
            await pool.wait_ready(timeout=20)


async def test_a_busy_worker_is_not_taken_for_dead() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=1, heartbeat_interval=0.1, heartbeat_misses=10) as pool:
            assert await pool.execute("spin", {"seconds": 1.5}) == "spun"
            (worker,) = pool.workers()
            assert worker.last_heartbeat is not None
            assert worker.rss > 0
            assert pool.stats().restarts == 0


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_worker_that_answers_nothing_is_alive_while_it_computes(threads: int) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(
            UNRULY, size=1, threads=threads, heartbeat_interval=0.1, heartbeat_misses=3, health_interval=0.4
        ) as pool:
            (before,) = pool.workers()
            assert await pool.execute("compute", {"seconds": 1.5}) == "computed"
            # In the same time as ever.
            started = anyio.current_time()
            with pytest.raises(sp.WorkerCrashed, match="heartbeat_while_busy") as caught:
                await pool.execute("block", {"seconds": 60})
            assert caught.value.details["reason"] == "heartbeat"
            assert anyio.current_time() - started < 3
            assert await pool.execute("pid") != before.pid
            assert pool.stats().restarts == 1


async def test_a_stopped_and_continued_worker_within_the_limit_is_kept() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=1, heartbeat_interval=0.2, heartbeat_misses=20) as pool:
            (worker,) = pool.workers()
            os.kill(worker.pid, signal.SIGSTOP)
            await anyio.sleep(0.6)
            os.kill(worker.pid, signal.SIGCONT)
            assert await pool.execute("pid") == worker.pid


async def test_an_unwell_worker_is_replaced() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=1, health_interval=0.05) as pool:
            (before,) = pool.workers()
            await pool.execute("fall_ill")
            await until(lambda: pool.workers()[0].pid != before.pid)
            assert await pool.execute("pid") != before.pid
            assert pool.stats().failed == 0


async def test_an_async_health_hook_is_asked_in_the_tools_event_loop() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.chatty", size=1, health_interval=0.05) as pool:
            first = await pool.execute("pid")
            await anyio.sleep(0.2)
            assert await pool.execute("fall_ill") == first
            await until(lambda: pool.workers()[0].pid not in (0, first))
            assert await pool.execute("pid") != first


@pytest.mark.parametrize("method", ["fork_server", "spawn"])
async def test_what_the_import_prints_is_logged_and_exit_handlers_run(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "snakepit_trio.worker")
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.chatty", size=2, start_method=method) as pool:
            await pool.execute("pid")
    lines = [record.message for record in caplog.records if record.name == "snakepit_trio.worker"]
    copies = 1 if method == "fork_server" else 2
    assert lines.count("imported here") == lines.count("and a warning") == copies
    assert lines.count("the worker's end") == 2
    # What an import has set up ends with the process that imported it.
    assert lines.count("the importer's end") == (0 if method == "fork_server" else 2)


async def test_a_spare_takes_the_place_of_a_worker_that_dies() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=1, spares=1, start_method="spawn") as pool:
            await until(lambda: any(worker.state == "spare" for worker in pool.workers()))
            (spare,) = [worker for worker in pool.workers() if worker.state == "spare"]
            assert pool.stats().ready == 1
            with pytest.raises(sp.WorkerCrashed):
                await pool.execute("leave")
            assert await pool.execute("pid") == spare.pid
            await until(lambda: any(w.state == "spare" and w.pid != spare.pid for w in pool.workers()))
            (serving,) = [worker for worker in pool.workers() if worker.slot == 0]
            assert (serving.id, serving.incarnation) == (spare.id, 2)
            assert pool.stats().restarts == 1


async def test_a_call_that_had_not_begun_is_run_elsewhere() -> None:
    """Not idempotent, and sent to a worker that was frozen: it never began, so it may."""
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=1, heartbeat_interval=0.1, heartbeat_misses=6) as pool:
            (frozen,) = pool.workers()
            os.kill(frozen.pid, signal.SIGSTOP)
            assert await pool.execute("pid") != frozen.pid
            assert pool.stats().restarts == 1


async def test_kill_9_is_told_from_a_lack_of_memory() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=1) as pool:
            (worker,) = pool.workers()

            async def call() -> None:
                with pytest.raises(sp.WorkerCrashed) as caught:
                    await pool.execute("spin", {"seconds": 20})
                assert caught.value.details["reason"] == "killed"
                assert caught.value.details["signal"] == "SIGKILL"

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(call)
                await until(lambda: pool.workers()[0].state == "busy")
                await anyio.sleep(0.1)
                os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize("limit", [{"max_requests": 20}, {"max_age": 0.3}])
async def test_recycling_under_load_fails_no_request(limit: dict[str, Any]) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=2, **limit) as pool:
            seen: set[int] = set()
            largest = calls = 0

            async def caller() -> None:
                nonlocal largest, calls
                while len(seen) < 6:
                    seen.add(await pool.execute("pid"))
                    calls += 1
                    largest = max(largest, sum(w.state in ("ready", "busy", "draining") for w in pool.workers()))
                    await anyio.sleep(0.002)

            async with anyio.create_task_group() as nursery:
                for _ in range(4):
                    nursery.start_soon(caller)
            stats = pool.stats()
            assert stats.completed == stats.accepted == calls
            assert stats.restarts == 0
            # Never more than one above the size at once.
            assert largest <= 3


async def test_a_leaking_worker_is_replaced() -> None:
    with anyio.fail_after(60):
        limit = 200 << 20
        async with sp.open_pool(UNRULY, size=1, max_rss=limit, heartbeat_interval=0.2, heartbeat_misses=50) as pool:
            (before,) = pool.workers()
            await pool.execute("leak", {"size": limit})
            await until(lambda: pool.workers()[0].pid != before.pid)
            assert await pool.execute("leak", {"size": 1}) == 1


async def test_resize_rolling_restart_recycle_and_cordon() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(UNRULY, size=1) as pool:
            await pool.resize(3)
            assert pool.stats().ready == pool.stats().size == 3
            before = {worker.pid for worker in pool.workers()}
            await pool.rolling_restart()
            after = {worker.pid for worker in pool.workers()}
            assert len(after) == 3
            assert not before & after
            await pool.resize(1)
            (left,) = pool.workers()
            assert pool.stats().ready == 1
            for bad in (0, -1, True, 1.5, 10**9):
                with pytest.raises(sp.InvalidParameter):
                    await pool.resize(bad)  # type: ignore[arg-type]
            for n, timeout in ((-1, 1), (1.0, 1), (True, 1), (1, -1), (1, float("nan"))):
                with pytest.raises(sp.InvalidParameter):
                    await pool.wait_ready(n, timeout)  # type: ignore[arg-type]
            with pytest.raises(sp.WorkerStartupError) as late:
                await pool.wait_ready(2, timeout=0)
            assert isinstance(late.value, TimeoutError)
            assert isinstance(pickle.loads(pickle.dumps(late.value)), TimeoutError)
            await pool.wait_ready(1, timeout=0)
            assert await pool.recycle(left.id)
            (new,) = pool.workers()
            assert new.pid != left.pid
            with pytest.raises(sp.InvalidParameter):
                await pool.recycle(left.id)
            pool.cordon(new.id)
            with pytest.raises(sp.RequestTimeout):
                await pool.execute("pid", timeout=0.05)
            pool.cordon(new.id, cordoned=False)
            assert await pool.execute("pid") == new.pid
            assert pool.stats().restarts == 0


async def test_a_slot_fails_visibly_by_starts_that_fail_and_not_by_calls_that_crash_its_workers(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    with anyio.fail_after(60):
        async with sp.open_pool(
            "tests.adapters.moody",
            size=1,
            env={"MOODY": str(bad)},
            restart_limit=2,
            restart_window=60,
            backoff_base=0.01,
        ) as pool:
            for _ in range(5):
                with pytest.raises(sp.WorkerCrashed):
                    await pool.execute("die")
            assert pool.workers()[0].state != "failed"
            bad.touch()
            with pytest.raises((sp.WorkerCrashed, sp.WorkerStartupError)):
                await pool.execute("die")
            await until(lambda: pool.workers()[0].state == "failed")
            assert "not now" in pool.workers()[0].reason
            # The call that it died of has died with it.
            assert pool.workers()[0].in_flight == 0
            next_attempt = pool.workers()[0].next_attempt
            assert next_attempt is not None and next_attempt > anyio.current_time()
            # Nobody waits for what can't come, and everybody is told when to come again.
            started = anyio.current_time()
            with pytest.raises(sp.WorkerStartupError, match=r"not now.*restart_limit=2 is used up") as caught:
                await pool.execute("die", timeout=20)
            assert caught.value.retryable
            assert caught.value.details["option"] == "restart_limit"
            assert caught.value.details["retry_after"] == pytest.approx(next_attempt - started, abs=1)
            with pytest.raises(sp.WorkerStartupError):
                await pool.wait_ready(timeout=20)
            assert anyio.current_time() - started < 5


async def test_what_a_worker_says_of_its_failure_acts_on_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    says = "\x1b[2J\nWARNING forged\u202e"
    with anyio.fail_after(60), pytest.raises(sp.WorkerStartupError) as caught:
        async with sp.open_pool("tests.adapters.moody", size=1, env={"MOODY": str(tmp_path), "SAYS": says}):
            pass
    assert "not now: \\x1b[2J\nWARNING forged\\x202e" in str(caught.value)
    told = [record.getMessage() for record in caplog.records if "not now" in record.getMessage()]
    assert len(told) >= 2, "the worker's end, and the pool's"
    for message in (*told, *map(str, caught.value.details.values())):
        assert all(c.isprintable() or c == "\n" for c in message)
    assert not any("\n" in message for message in told)


async def test_new_code_comes_in_by_a_rolling_restart_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "deployed.py"
    head = "import os\nimport snakepit_trio as sp\n"
    module.write_text(f"{head}@sp.tool\ndef leave() -> None: os._exit(1)\n@sp.tool\ndef version() -> int: return 1\n")
    with anyio.fail_after(60):
        async with sp.open_pool("deployed", size=2, start_method="spawn", restart_limit=0) as pool:
            module.write_text(f"{module.read_text()}@sp.tool\ndef added() -> int: return 2\n")
            with pytest.raises(sp.WorkerCrashed):
                await pool.execute("leave")
            await until(lambda: any(info.state == "failed" for info in pool.workers()))
            (failed,) = [info for info in pool.workers() if info.state == "failed"]
            assert "'added' is new; rolling_restart()" in failed.reason
            assert {await pool.execute("version") for _ in range(4)} == {1}
            with pytest.raises(sp.ToolNotFound):
                await pool.execute("added")
            await pool.rolling_restart()
            assert await pool.execute("added") == 2


async def test_without_a_limit_a_slot_never_fails() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(
            UNRULY, size=1, restart_limit=None, startup_timeout=None, restart_window=60, backoff_base=0, backoff_max=0
        ) as pool:
            for _ in range(8):
                with pytest.raises(sp.WorkerCrashed):
                    await pool.execute("leave")
            assert await pool.execute("pid") == pool.workers()[0].pid


async def test_a_tool_that_ignores_everything_does_not_hold_the_close_up() -> None:
    with anyio.fail_after(60):
        started = anyio.current_time()
        async with anyio.create_task_group() as nursery:
            async with sp.open_pool(UNRULY, size=1, stop_grace=0.3) as pool:

                async def call() -> None:
                    with pytest.raises(sp.PoolClosed):
                        await pool.execute("ignore_sigterm")

                nursery.start_soon(call)
                await until(lambda: pool.stats().in_flight)
                process = psutil.Process(pool.workers()[0].pid)
            assert anyio.current_time() - started < 10
            assert not process.is_running()


SCRIPT = """
import sys
import anyio
import snakepit_trio as sp
from snakepit_trio.supervision import exchange_link
from snakepit_trio.wire.frames import Chunk

async def main(runtime):
    print(await runtime.pool().execute("pid") > 0, flush=True)
    what = sys.argv[1]
    if what == "code":
        return 7
    if what == "raise":
        raise LookupError("mine")
    if what == "wait":
        await anyio.sleep_forever()
    if what == "stuck":
        await runtime.pool().execute("ignore_sigterm")
    if what == "pipe":
        while True:
            print("x" * 1000)

sys.exit(sp.run(main, sp.PoolConfig(adapter="tests.adapters.unruly", size=1)))
"""


@pytest.mark.parametrize(
    ("what", "number", "code"),
    [
        ("none", None, 0),
        ("code", None, 7),
        ("raise", None, 1),
        ("wait", signal.SIGINT, 130),
        ("wait", signal.SIGTERM, 143),
    ],
)
def test_script_mode(what: str, number: signal.Signals | None, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, what], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    children = psutil.Process(process.pid).children(recursive=True) if number else []
    if number is not None:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert ("LookupError: mine" in stderr) == (what == "raise")
    assert not any(child.is_running() for child in children)


def script(what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, what], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def blocks_sigterm(pid: int) -> bool:
    """Whether a thread of the process does: the tool has begun."""
    status = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))
    return any(int(mask, 16) & 1 << signal.SIGTERM - 1 for mask in re.findall(r"SigBlk:\s*(\w+)", status))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_worker_that_does_not_stop_and_says_so(times: int) -> None:
    process = script("stuck")
    (worker,) = [c for c in psutil.Process(process.pid).children(recursive=True) if not c.children()]
    while not blocks_sigterm(worker.pid):
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "had to kill" in stderr
    assert not worker.is_running()


def test_a_reader_that_goes_away_does_not_hang_the_exit() -> None:
    process = script("pipe")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 141
    assert "Traceback" not in stderr


def test_script_mode_with_a_configuration_that_is_refused() -> None:
    code = 'import sys, snakepit_trio as sp\nsys.exit(sp.run(None, "no_such_module_at_all"))'
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "No module named 'no_such_module_at_all'" in done.stderr


async def test_a_stream_that_has_lost_a_chunk_does_not_end_well(
    monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    def decode(message: bytes) -> Any:
        frame = plain(message)
        if type(frame) is Chunk:
            chunks.append(frame)
            if len(chunks) == 3:
                raise RuntimeError("the third")
        return frame

    plain, chunks = exchange_link.decode_worker_frame, list[Chunk]()
    monkeypatch.setattr(exchange_link, "decode_worker_frame", decode)
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.basic", size=1) as pool:
            with pytest.raises(sp.WorkerCrashed, match="internal error"):
                async with pool.stream("count", {"n": 50}) as found:
                    async for _ in found:
                        pass
            async with pool.stream("count", {"n": 50}) as found:
                assert len([chunk async for chunk in found]) == 50
    assert [str(error) for error in internal_errors] == ["the third"]
