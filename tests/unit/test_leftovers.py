"""What killed runs have left: their own processes go, and nobody else's, whatever those say of themselves."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snakepit_trio._platform import boot_id, start_time
from snakepit_trio.errors import ConfigError
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.launch.interpreter import python_command
from snakepit_trio.supervision.leftovers import Swept, clear, look, sweep
from snakepit_trio.supervision.locks import Locks
from snakepit_trio.supervision.process_registry import ProcessRow, Registry
from snakepit_trio.supervision.run import open_run

# Of this test run alone: a sweep looks at all processes of the machine, and another run of these tests may be under way.
DEAD = secrets.token_hex(5)
LONGER = f"{DEAD}er"
SLEEP = "import time; print(flush=True); time.sleep(600)"


class Processes:
    """Processes that do nothing, each the leader of a group unless it is in another's."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, *arguments: str, name: str = sys.executable, group: int | None = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [name, "-c", SLEEP, *arguments], executable=sys.executable, stdout=subprocess.PIPE,
            process_group=0 if group is None else group, env={**os.environ, **variables},
        )  # fmt: skip
        self._started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def worker(self, run_id: str, python: str | None = None) -> subprocess.Popen[bytes]:
        """A real one, which waits for its boot message for ever."""
        lifeline, self._hold = os.pipe()
        spec = WorkerSpec(
            worker_id="w", run_id=run_id, pool="p", adapter="", token="", python=python, flags=("-W", "error")
        )
        process = subprocess.Popen(
            [
                *python_command("snakepit_trio.worker", spec), "--run", run_id, "--worker", "w",
                "--lifeline", str(lifeline), "--report", "1", "--marks", "1",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(lifeline,), start_new_session=True,
        )  # fmt: skip
        os.close(lifeline)
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        if self._started and hasattr(self, "_hold"):
            os.close(self._hold)


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.end()


class State:
    """A state directory in which runs have died."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self.directory = directory
        self.locks = Locks(directory)
        self.registry = Registry(directory)

    def die(self, run_dir: Path, run_id: str = DEAD) -> None:
        """A run that begins, and loses its lock without a word; its host is gone too."""
        os.close(self.locks.begin(run_id, run_dir))
        self.registry.begin_run(run_id, run_dir)

    def write(self, process_id: str, pid: int | None = None, **values: int | None) -> None:
        row = ProcessRow("worker", "default", pid, None if pid is None else start_time(pid))
        if values:
            row = ProcessRow(row.kind, row.pool, row.pid, values["start_time"])
        self.registry.write(DEAD, {process_id: row})

    def sweep(self) -> list[Swept]:
        return sweep(self.directory, self.locks, self.registry)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "state")
    yield made
    made.registry.close()


def killed(process: subprocess.Popen[bytes]) -> bool:
    return process.wait(5) == -signal.SIGKILL


def test_a_dead_runs_processes_and_directory_go(tmp_path: Path, state: State, processes: Processes) -> None:
    left = tmp_path / f"snakepit-{DEAD}-x"
    left.mkdir()
    (left / "w.sock").touch()
    state.die(left)
    written, started = processes.start(SNAKEPIT_RUN_ID=DEAD), processes.worker(DEAD)
    state.write("w1", written.pid)
    state.write("w2")
    expected = tuple(sorted((written.pid, started.pid)))
    assert [run.pids for run in look(state.directory)] == [expected]
    assert written.poll() is None and left.exists()
    with open_run(str(state.directory)) as run:
        assert [(swept.run_id, swept.pids, swept.run_dir) for swept in run.swept] == [(DEAD, expected, str(left))]
    assert killed(written) and killed(started)
    assert not left.exists()
    assert state.sweep() == []


def test_a_live_runs_processes_are_left_alone(state: State, processes: Processes) -> None:
    with open_run(str(state.directory)) as run:
        process = processes.start(SNAKEPIT_RUN_ID=run.run_id)
        run.reserve("w1", "worker", "default")
        run.begun("w1", process.pid)
        assert state.sweep() == []
        with open_run(str(state.directory)) as other:
            assert other.run_id != run.run_id
            assert other.swept == []
        # Not even when a cleaner has taken its lock: its host is there still.
        (state.directory / "runs" / f"{run.run_id}.lock").unlink()
        assert clear(state.directory) == []
        assert process.poll() is None
        assert run.run_dir.exists()


def test_a_reused_process_id_is_a_stranger(tmp_path: Path, state: State, processes: Processes) -> None:
    process = processes.start(SNAKEPIT_RUN_ID=DEAD)
    state.die(tmp_path / "none")
    state.write("other start", process.pid, start_time=(start_time(process.pid) or 0) + 1)
    state.write("other boot", process.pid)
    state.registry._db.execute("UPDATE processes SET boot_id = 'x' WHERE process_id = 'other boot'")
    assert boot_id() != "x"
    assert [run.pids for run in state.sweep()] == [()]
    assert process.poll() is None


def test_what_was_written_down_must_say_that_it_is_the_runs(tmp_path: Path, state: State, processes: Processes) -> None:
    """A row may have been put there by anybody who could write into the directory, at any time."""
    process = processes.start()
    state.die(tmp_path / "none")
    state.write("w1", process.pid)
    assert [run.pids for run in state.sweep()] == [()]
    assert process.poll() is None


def test_words_alone_make_nobody_ours(tmp_path: Path, state: State, processes: Processes) -> None:
    innocent = [
        processes.start("--run", DEAD),
        processes.start("-m", "snakepit_trio.worker", "--run", DEAD, name="/usr/bin/vim"),
        processes.start("snakepit_trio.worker", "--run", DEAD),
        processes.start("-m", "snakepit_trio.worker", "--run", LONGER),
        processes.start("-m", "snakepit_trio.working", "--run", DEAD),
        processes.start(SNAKEPIT_RUN_ID=DEAD),
        processes.start(SNAKEPIT_RUN_ID=DEAD, SNAKEPIT_WORKER_ID="w1"),
    ]
    state.die(tmp_path / "none")
    assert [run.pids for run in look(state.directory)] == [()]
    assert [run.pids for run in state.sweep()] == [()]
    assert [process.poll() for process in innocent] == [None] * len(innocent)


def test_a_worker_that_was_started_and_not_yet_written_down_goes(
    tmp_path: Path, state: State, processes: Processes
) -> None:
    """In another language: it has its ids in the environment."""
    begun, other = (processes.start(SNAKEPIT_RUN_ID=DEAD, SNAKEPIT_WORKER_ID=f"w{n}") for n in (1, 2))
    state.die(tmp_path / "none")
    state.write("w1")
    assert [run.pids for run in state.sweep()] == [(begun.pid,)]
    assert killed(begun) and other.poll() is None


def test_what_a_dead_runs_workers_have_started_goes_too(tmp_path: Path, state: State, processes: Processes) -> None:
    """Nobody has written it down, and its worker is gone."""
    worker = processes.start(SNAKEPIT_RUN_ID=DEAD)
    child = processes.start(group=worker.pid, SNAKEPIT_RUN_ID=DEAD)
    state.die(tmp_path / "none")
    state.write("w1", worker.pid)
    worker.kill()
    # Nobody reaps it before.
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert [run.pids for run in state.sweep()] == [(child.pid,)]
    assert killed(child)


def test_a_directory_that_no_run_has_made_is_left(tmp_path: Path, state: State) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    linked = tmp_path / f"snakepit-{DEAD}-link"
    linked.symlink_to("odd")
    for number, path in enumerate((odd, linked)):
        state.die(path, DEAD if number else LONGER)
    assert [run.run_dir for run in state.sweep()] == [None, None]
    assert odd.exists() and linked.is_symlink()


def test_what_has_ended_is_struck_out(tmp_path: Path, state: State, processes: Processes) -> None:
    process = processes.start(SNAKEPIT_RUN_ID=DEAD)
    state.die(tmp_path / "none")
    state.write("w1", process.pid)
    state.registry.write(DEAD, {"w1": None})
    assert [run.pids for run in state.sweep()] == [()]
    assert process.poll() is None


def test_a_run_that_never_got_into_the_registry_is_found_by_its_lock(
    tmp_path: Path, state: State, processes: Processes
) -> None:
    """Its registry was locked, or its disk full."""
    left = tmp_path / f"snakepit-{DEAD}-x"
    left.mkdir()
    os.close(state.locks.begin(DEAD, left))
    process = processes.worker(DEAD, sys.executable)
    assert state.sweep() == [Swept(DEAD, (process.pid,), str(left))]
    assert not left.exists() and killed(process)
    # One that has only just been made may be a run's that is about to begin.
    path = state.directory / "runs/new.lock"
    path.touch()
    assert state.sweep() == []
    os.utime(path, (time.time() - 3600,) * 2)
    assert state.sweep() == [Swept("new", (), None)]
    assert not path.exists()


def test_rows_that_make_no_sense_are_told_of_and_passed_over(
    tmp_path: Path, state: State, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    process = processes.start(SNAKEPIT_RUN_ID=DEAD)
    state.die(tmp_path / "none")
    state.write("w1", process.pid)
    execute = state.registry._db.execute
    outside = tmp_path / "outside.lock"
    outside.touch()
    for run in (
        ("../../outside", "/", 1, 0.0),
        (b"\xff", "/", 1, 0.0),
        ("odd", b"\xff", "x", "y"),
        (None, "/", 1, 0.0),
    ):
        execute("INSERT INTO runs VALUES (?, ?, ?, ?)", run)
    execute("INSERT INTO runs VALUES (CAST(X'ff' AS TEXT), '/', 1, 0.0)")
    for number, values in enumerate((("x", 1), (None, "y"), (2**62, 2**62), (-1, 1), (0, 0), (b"\xff", 1.5))):
        row = (DEAD, f"odd{number}", "worker", "p", *values, boot_id())
        execute("INSERT INTO processes VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    assert [run.pids for run in state.sweep()] == [(process.pid,)]
    assert killed(process) and outside.exists()
    assert caplog.text.count("a run that makes no sense") == 5
    assert caplog.text.count("a process in the registry that makes no sense") == 3
    assert execute("SELECT * FROM runs").fetchall() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_a_lock_of_somebody_else_is_no_sign_of_anything(tmp_path: Path, state: State, processes: Processes) -> None:
    process = processes.start(SNAKEPIT_RUN_ID=DEAD)
    state.die(tmp_path / "none")
    state.write("w1", process.pid)
    os.chown(state.directory / f"runs/{DEAD}.lock", 65534, -1)
    assert look(state.directory) == [] == state.sweep()
    assert process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_nothing_is_cleared_away_for_somebody_else(tmp_path: Path, state: State, processes: Processes) -> None:
    process = processes.start(SNAKEPIT_RUN_ID=DEAD)
    state.die(tmp_path / "none")
    state.write("w1", process.pid)
    os.chown(state.directory, 65534, -1)
    with pytest.raises(ConfigError, match="belongs to user 65534"):
        clear(state.directory)
    assert process.poll() is None


def test_a_lock_file_that_can_not_be_removed_is_closed(state: State) -> None:
    lock = state.directory / "runs/old.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    # A folder in the place of its socket.
    lock.with_suffix(".sock").mkdir()
    before = os.listdir("/proc/self/fd")
    state.sweep()
    assert os.listdir("/proc/self/fd") == before
