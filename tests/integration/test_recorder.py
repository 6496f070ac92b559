"""The flight recorder: what a dump holds, and the three occasions on which one is written."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import snakepit_trio as sp
from snakepit_trio.observe.recorder import KEPT

pytestmark = pytest.mark.anyio

BASIC = "tests.adapters.basic"


def config(place: Path, **options: Any) -> sp.RuntimeConfig:
    return sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=BASIC, size=1)], state_dir=str(place), **options)


def dumps(place: Path) -> list[Path]:
    return sorted((place / "recorder").glob("*.json"))


async def test_a_dump_says_how_everything_stands(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(tmp_path)) as runtime:
            pool = runtime.pool()
            await pool.execute("echo", {"value": "argument-of-the-call"})
            with pytest.raises(sp.ToolError):
                await pool.execute("fail", {"message": "no"})
            async with anyio.create_task_group() as nursery:
                for _ in range(2):
                    nursery.start_soon(pool.execute, "sleep", {"seconds": 0.1})
                while pool.stats().queued + pool.stats().in_flight < 2:
                    await anyio.sleep(0.001)
                found = runtime.recorder.dump()
            assert json.loads(json.dumps(found)) == found
            assert found["run_id"] == runtime.run_id
            here = found["pools"]["default"]
            assert sorted(r["phase"] for r in here["requests"]) == ["queued", "running"]
            running = next(r for r in here["requests"] if r["phase"] == "running")
            (worker,) = here["workers"]
            assert running["worker_id"] == worker["id"] == here["slots"][0]["worker_id"]
            assert 0 <= running["age"] < 5
            assert [(end["outcome"], end["tool"]) for end in here["ended"]] == [
                ("completed", "echo"),
                ("failed", "fail"),
            ]
            assert here["ended"][1]["error"] == "tool_error"
            assert here["stats"]["in_flight"] == 1
            names = [event["name"] for event in found["events"]]
            assert names[:3] == ["worker.starting", "worker.ready", "pool.opened"]
            assert "argument-of-the-call" not in json.dumps(found)
            assert not runtime.events.active, "the recorder is no subscriber"


async def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(tmp_path, recorder_size=3)) as runtime:
            for n in range(10):
                await runtime.pool().execute("add", {"a": n, "b": 1})
            found = runtime.recorder.dump()
            assert len(found["pools"]["default"]["ended"]) == 3
            assert len(found["events"]) <= 3
            for _ in range(KEPT + 3):
                assert runtime.recorder.write() is not None
    assert len(dumps(tmp_path)) == KEPT
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in dumps(tmp_path))
    assert (tmp_path / "recorder").stat().st_mode & 0o777 == 0o700


async def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "recorder").write_text("in the way")
    with anyio.fail_after(60):
        async with sp.open_runtime(config(tmp_path)) as runtime:
            assert runtime.recorder.write() is None


async def test_a_signal(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    mine = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with anyio.fail_after(30):
            async with sp.open_runtime(config(tmp_path, dump_on_signal=True)) as runtime:
                async with runtime.events.subscribe("recorder.") as events:
                    os.kill(os.getpid(), signal.SIGUSR1)
                    event = await anext(events)
                assert event.metadata["reason"] == "signal"
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        (path,) = dumps(tmp_path)
        assert json.loads(path.read_text())["reason"] == "signal"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert mine is before


async def test_a_signal_needs_the_main_thread(tmp_path: Path, anyio_backend: str) -> None:
    async def elsewhere() -> None:
        async with sp.open_runtime(config(tmp_path, dump_on_signal=True)):
            pass

    with pytest.raises(sp.ConfigError, match="main thread"):
        await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=anyio_backend))


class Fatal(BaseException):
    """What no boundary stops."""


async def test_a_crash_of_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = anyio.Event()

    async def keep(self: object) -> None:
        await crash.wait()
        raise Fatal("in a task of the runtime's own")

    monkeypatch.setattr("snakepit_trio.sessions.directory.SessionDirectory.keep", keep)
    with anyio.fail_after(60):
        with pytest.raises(BaseExceptionGroup) as caught:
            async with sp.open_runtime(config(tmp_path)) as runtime:
                await runtime.pool().execute("add", {"a": 1, "b": 1})
                crash.set()
                await anyio.sleep_forever()
        assert caught.group_contains(Fatal)
    (path,) = dumps(tmp_path)
    found = json.loads(path.read_text())
    assert found["reason"] == "crash"
    assert found["pools"]["default"]["workers"][0]["state"] in ("ready", "busy", "stopped", "crashed")
    assert found["pools"]["default"]["ended"][0]["tool"] == "add"


async def test_no_crash_no_dump(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        with pytest.raises(KeyError):
            async with sp.open_runtime(config(tmp_path)):
                raise KeyError("the application's own")
        with anyio.move_on_after(0.01):
            async with sp.open_runtime(config(tmp_path)):
                await anyio.sleep_forever()
    assert not dumps(tmp_path)
