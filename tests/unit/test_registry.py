"""Runs: private directories, locks that tell the living from the dead, and what a dead one leaves."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from snakepit_trio.workers.registry import open_run


def test_a_runs_places_are_private_and_go_with_it(tmp_path: Path) -> None:
    with open_run(str(tmp_path / "state")) as run:
        lock = tmp_path / "state" / "runs" / f"{run.run_id}.lock"
        assert stat.S_IMODE(run.run_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        assert len(os.fsencode(run.run_dir)) < 107 - 20
    assert not lock.exists()
    assert not run.run_dir.exists()


def test_a_dead_runs_directory_is_swept_and_a_live_ones_is_not(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    dead, live, odd = (tmp_path / f"snakepit-{name}-x" for name in ("dead", "live", "odd"))
    for directory in (dead, live, odd):
        directory.mkdir()
        (directory / "w.sock").touch()
    (runs / "dead.lock").write_text(str(dead))
    (runs / "live.lock").write_text(str(live))
    # A file that names what no run has made is left alone.
    (runs / "odd.lock").write_text(str(tmp_path))
    with (runs / "live.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with open_run(str(tmp_path)) as run:
            assert not dead.exists()
            assert not (runs / "dead.lock").exists()
            assert live.exists()
            assert odd.exists()
            with open_run(str(tmp_path)) as other:
                assert run.run_dir.exists()
                assert other.run_id != run.run_id


def test_a_run_goes_on_without_a_state_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with open_run(str(tmp_path / "file" / "state")) as run:
        assert run.run_dir.exists()
    assert "no state directory" in caplog.text
