"""The directories of a run, taken, spoilt or somebody else's: its workers go on, and others come in their place."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio import _unix_door
from snakepit_trio.control.client import connect as open_control
from snakepit_trio.supervision.runs import list_runs
from tests.until import until

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[2]

Harm = Callable[[Path, Path], AbstractContextManager[object]]


def no_directory(run: Path, state: Path) -> AbstractContextManager[object]:
    shutil.rmtree(run)
    return nullcontext()


def no_sockets(run: Path, state: Path) -> AbstractContextManager[object]:
    for path in run.iterdir():
        path.unlink()
    return nullcontext()


def no_state(run: Path, state: Path) -> AbstractContextManager[object]:
    shutil.rmtree(state)
    return nullcontext()


def nothing_at_all(run: Path, state: Path) -> AbstractContextManager[object]:
    shutil.rmtree(run)
    return no_state(run, state)


def garbage(run: Path, state: Path) -> AbstractContextManager[object]:
    (state / "registry.sqlite3").write_bytes(b"garbage" * 1000)
    return nullcontext()


def locked(run: Path, state: Path) -> AbstractContextManager[object]:
    other = sqlite3.connect(state / "registry.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return contextlib.closing(other)


HARMS: list[Harm] = [no_directory, no_sockets, no_state, garbage, locked, nothing_at_all]


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["fork_server", "spawn"])
async def test_workers_go_on_and_dead_ones_are_replaced(method: str, tmp_path: Path) -> None:
    config = sp.RuntimeConfig(
        state_dir=tmp_path / "state",
        pools=[
            sp.PoolConfig(
                adapter="tests.adapters.basic", size=2, start_method=method, restart_limit=None, backoff_max=0.01
            )
        ],
    )
    with anyio.fail_after(120):
        async with sp.open_runtime(config) as runtime:
            pool = runtime.pool()
            for harm in HARMS:
                before = {worker.pid for worker in pool.workers()}
                with harm(runtime._run.run_dir, tmp_path / "state"):
                    assert await pool.execute("add", {"a": 1, "b": 2}) == 3
                    for worker in pool.workers():
                        pool.kill_worker(worker.id)
                    await until(lambda before=before: not before & {worker.pid for worker in pool.workers()})
                    await pool.wait_ready(timeout=30)
                    assert await pool.execute("add", {"a": 2, "b": 2}) == 4, harm.__name__
    # In order: nothing is left, and the next one starts.
    assert list_runs(tmp_path / "state") == []
    with anyio.fail_after(60):
        async with sp.open_runtime(config) as runtime:
            assert await runtime.pool().execute("add", {"a": 1, "b": 2}) == 3
            assert [run.run_id for run in list_runs(tmp_path / "state")] == [runtime.run_id]


def no_run_and_no_sockets_of_control(run: Path, state: Path) -> AbstractContextManager[object]:
    for path in (state / "runs").glob("*.sock"):
        path.unlink()
    return no_directory(run, state)


@pytest.mark.anyio
async def test_sockets_that_were_taken_are_bound_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Under a runtime that starts no process meanwhile; whoever is connected already stays so."""
    monkeypatch.setattr(_unix_door, "_LOOK", 0.05)
    pools = [sp.PoolConfig(adapter="tests.adapters.basic", size=1)]
    config = sp.RuntimeConfig(state_dir=tmp_path / "state", pools=pools, bridge=sp.BridgeConfig())
    params = {"a": 1, "b": 2}
    with anyio.fail_after(60):
        async with sp.open_runtime(config) as runtime:
            bridge, control = runtime.bridge, runtime._run.control
            assert bridge is not None and control is not None
            place = Path(bridge.address.removeprefix("unix:"))
            assert place.parent == runtime._run.run_dir
            async with sp.connect(bridge.address, token=bridge.token) as earlier:
                for harm in (no_sockets, no_directory, no_run_and_no_sockets_of_control, no_state, nothing_at_all):
                    harm(runtime._run.run_dir, tmp_path / "state")
                    await until(lambda: place.exists() and control.exists())
                    assert stat.S_IMODE(place.stat().st_mode) == stat.S_IMODE(control.stat().st_mode) == 0o600
                    [entry] = list_runs(tmp_path / "state")
                    assert (entry.run_id, entry.alive) == (runtime.run_id, True), harm.__name__
                    async with (
                        sp.connect(bridge.address, token=bridge.token) as client,
                        open_control(str(control)) as operator,
                    ):
                        assert await client.execute("add", params) == 3
                        assert (await operator.ask("status"))["run_id"] == runtime.run_id
                    assert await earlier.execute("add", params) == 3
            # What somebody else has put there is theirs.
            caplog.clear()
            place.unlink()
            place.touch()
            await anyio.sleep(0.3)
            assert place.is_file() and not caplog.records
            # Where it can't be made, that is told of once.
            place.unlink()
            place.parent.rmdir()
            place.parent.symlink_to(tmp_path / "nowhere")
            await until(lambda: "can't be made again" in caplog.text)
            await anyio.sleep(0.3)
            assert sum(str(place) in record.getMessage() for record in caplog.records) == 1
            assert await runtime.pool().execute("add", params) == 3
            place.parent.unlink()
    assert list_runs(tmp_path / "state") == []


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["fork_server", "spawn"])
async def test_the_error_names_a_directory_that_can_not_be_made_again(method: str, tmp_path: Path) -> None:
    config = sp.PoolConfig(adapter="tests.adapters.basic", size=1, start_method=method)
    with anyio.fail_after(60):
        async with sp.open_runtime(sp.RuntimeConfig(state_dir=tmp_path / "state", pools=[config])) as runtime:
            pool, place = runtime.pool(), runtime._run.run_dir
            shutil.rmtree(place)
            # What somebody else might have put there.
            place.symlink_to(tmp_path)
            with pytest.raises(sp.WorkerStartupError) as caught:
                await pool.rolling_restart()
            assert str(place) in caught.value.message
            place.unlink()


def snakepit(state: Path | str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "TMPDIR", "PATH")}
    return subprocess.run(
        [sys.executable, "-m", "snakepit_trio", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
        env={**kept, "PYTHONPATH": str(ROOT), "SNAKEPIT_STATE_DIR": str(state), **variables},
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_commands_refuse_a_state_directory_of_somebody_else(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "runs").mkdir(parents=True)
    os.chown(state, NOBODY, NOBODY)
    for arguments in (["cleanup"], ["cleanup", "--dry-run"], ["status"]):
        done = snakepit(state, *arguments)
        assert done.returncode == 1, arguments
        assert f"{state} belongs to user {NOBODY} (nobody)" in done.stderr, arguments
        assert "Traceback" not in done.stderr
    done = snakepit(state, "doctor")
    assert done.returncode == 1
    assert f"FAIL  state directory: {state} belongs to user {NOBODY} (nobody)" in done.stdout
    # A call goes on without it, and says so.
    done = snakepit(state, "call", "tests.adapters.basic", "add", '{"a": 1, "b": 2}')
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert [path.name for path in state.iterdir()] == ["runs"] and not list((state / "runs").iterdir())


def test_a_home_that_can_not_be_written_and_variables_that_say_nothing(tmp_path: Path) -> None:
    """The disk of a container, mostly: nothing but a directory for temporary files."""
    empty = dict.fromkeys(("SNAKEPIT_STATE_DIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "TMPDIR", "TEMP", "TMP"), "")
    # Nothing can be made in there, not even by root.
    call = ("call", "tests.adapters.basic", "add", '{"a": 1, "b": 2}')
    done = snakepit("", *call, **{**empty, "HOME": "/proc/self", "TMPDIR": str(tmp_path / "missing")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    done = snakepit("", "doctor", **{**empty, "HOME": "/proc/self"})
    assert "FAIL  state directory: " in done.stdout and "can't be made in /proc/" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
