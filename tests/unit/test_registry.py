"""Runs: private directories, locks that tell the living from the dead, and what a dead one leaves."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snakepit_trio.workers.identity import boot_id, start_time
from snakepit_trio.workers.registry import Registry, look, open_run

SLEEPER = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]


class Sleepers:
    """Processes that do nothing, each the leader of a group."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*SLEEPER, *arguments], stdout=subprocess.PIPE, start_new_session=True, env={**os.environ, **variables}
        )
        self._started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def sleepers() -> Iterator[Sleepers]:
    made = Sleepers()
    yield made
    made.end()


def die(registry: Registry, run_dir: Path, run_id: str = "dead") -> None:
    """A run that begins, and loses its lock without a word."""
    os.close(registry.begin_run(run_id, run_dir))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "state")
    yield made
    made.close()


def test_a_runs_places_are_private_and_go_with_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_run(str(state)) as run:
        lock = state / "runs" / f"{run.run_id}.lock"
        assert stat.S_IMODE(run.run_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        for path in [lock, *state.glob("registry*")]:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(os.fsencode(run.run_dir)) < 107 - 20
    assert not lock.exists()
    assert not run.run_dir.exists()
    registry = Registry(state)
    assert registry.sweep() == []
    registry.close()


def test_a_dead_runs_processes_and_directory_go(tmp_path: Path, registry: Registry, sleepers: Sleepers) -> None:
    left = tmp_path / "snakepit-dead-x"
    left.mkdir()
    (left / "w.sock").touch()
    die(registry, left)
    written, reserved = sleepers.start(), sleepers.start("--run", "dead")
    registry.reserve("dead", "w1", "worker", "default")
    registry.begun("dead", "w1", written.pid)
    registry.reserve("dead", "w2", "worker", "default")
    expected = tuple(sorted((written.pid, reserved.pid)))
    assert [run.pids for run in look(tmp_path / "state")] == [expected]
    assert written.poll() is None and left.exists()
    with open_run(str(tmp_path / "state")) as run:
        assert [(swept.run_id, swept.pids, swept.run_dir) for swept in run.swept] == [("dead", expected, str(left))]
    assert written.wait() < 0 and reserved.wait() < 0
    assert not left.exists()
    assert registry.sweep() == []


def test_a_live_runs_processes_are_left_alone(tmp_path: Path, registry: Registry, sleepers: Sleepers) -> None:
    with open_run(str(tmp_path / "state")) as run:
        process = sleepers.start("--run", run.run_id)
        run.reserve("w1", "worker", "default")
        run.begun("w1", process.pid)
        assert registry.sweep() == []
        with open_run(str(tmp_path / "state")) as other:
            assert other.run_id != run.run_id
            assert other.swept == []
        assert process.poll() is None
        assert run.run_dir.exists()


def test_a_reused_process_id_is_a_stranger(tmp_path: Path, registry: Registry, sleepers: Sleepers) -> None:
    process = sleepers.start()
    die(registry, tmp_path / "none")
    for name, started, boot in (
        ("other start", (start_time(process.pid) or 0) + 1, boot_id()),
        ("other boot", start_time(process.pid), "another"),
    ):
        registry._db.execute(
            "INSERT INTO processes VALUES ('dead', ?, 'worker', 'p', ?, ?, ?)", (name, process.pid, started, boot)
        )
    assert [run.pids for run in registry.sweep()] == [()]
    assert process.poll() is None


def test_what_a_dead_runs_workers_have_started_goes_too(registry: Registry, tmp_path: Path, sleepers: Sleepers) -> None:
    """Nobody has written it down, and its worker is gone."""
    mine, anothers = sleepers.start(SNAKEPIT_RUN_ID="dead"), sleepers.start(SNAKEPIT_RUN_ID="deader")
    die(registry, tmp_path / "none")
    assert [run.pids for run in registry.sweep()] == [(mine.pid,)]
    assert mine.wait(5) == -9
    assert anothers.poll() is None


def test_a_directory_that_no_run_has_made_is_left(tmp_path: Path, registry: Registry) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    die(registry, odd)
    assert [run.run_dir for run in registry.sweep()] == [None]
    assert odd.exists()


def test_what_has_ended_is_struck_out(tmp_path: Path, registry: Registry, sleepers: Sleepers) -> None:
    process = sleepers.start()
    die(registry, tmp_path / "none")
    registry.reserve("dead", "w1", "worker", "p")
    registry.begun("dead", "w1", process.pid)
    registry.ended("dead", "w1")
    assert [run.pids for run in registry.sweep()] == [()]
    assert process.poll() is None


def test_a_spoilt_file_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "state"
    with open_run(str(state)):
        pass
    path = state / "registry.sqlite3"
    sound = path.read_bytes()
    # No database; one whose second page makes no sense, which opening does not notice; one that was cut short.
    for number, spoilt in enumerate(
        [b"no database at all" * 1000, sound[:4096] + b"\xee" * 4096 + sound[8192:], sound[:5000]]
    ):
        caplog.clear()
        path.write_bytes(spoilt)
        with open_run(str(state)) as run:
            run.reserve("w1", "worker", "p")
            assert (state / "runs" / f"{run.run_id}.lock").exists()
            run.ended("w1")
        assert "begun anew" in caplog.text
        kept = sorted(state.glob("registry.sqlite3.spoilt-*"))
        assert len(kept) == number + 1 and kept[-1].read_bytes() == spoilt


def test_a_run_goes_on_without_a_state_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with open_run(str(tmp_path / "file" / "state")) as run:
        assert run.run_dir.exists()
        run.reserve("w1", "worker", "p")
        run.begun("w1", os.getpid())
        run.ended("w1")
    assert "no state directory" in caplog.text


@pytest.mark.parametrize("what", ["read-only", "full"])
def test_a_run_goes_on_when_its_book_can_no_longer_be_written(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    connect = Registry._connect
    opened: list[sqlite3.Connection] = []

    def connecting(path: Path) -> sqlite3.Connection:
        opened.append(connect(path))
        return opened[-1]

    monkeypatch.setattr(Registry, "_connect", staticmethod(connecting))
    with open_run(str(state)) as run:
        [(pages,)] = opened[0].execute("PRAGMA page_count")
        opened[0].execute("PRAGMA query_only = 1" if what == "read-only" else f"PRAGMA max_page_count = {pages}")
        for number in range(500):
            run.reserve(f"w{number}", "worker", "p")
        run.begun("w1", os.getpid())
        run.ended("w1")
    assert "the registry of processes can't be written" in caplog.text
    assert not run.run_dir.exists()


def test_a_lock_file_that_can_not_be_removed_is_closed(registry: Registry, tmp_path: Path) -> None:
    lock = tmp_path / "state/runs/old.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    # A folder in the place of its socket.
    lock.with_suffix(".sock").mkdir()
    before = os.listdir("/proc/self/fd")
    registry.sweep()
    assert lock.exists()
    assert os.listdir("/proc/self/fd") == before
