"""What ``snakepit new`` makes runs as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=place, capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_it_runs_as_generated(tmp_path: Path) -> None:
    made = run(tmp_path, "snakepit_trio", "new", "my_tools")
    assert made.returncode == 0, made.stderr
    assert "snakepit call my_tools:MyTools greet" in made.stdout
    place = tmp_path / "my_tools"
    assert {path.name for path in place.iterdir()} == {"my_tools.py", "test_my_tools.py", "snakepit.toml"}
    assert [path.name for path in tmp_path.iterdir()] == ["my_tools"]
    call = run(place, "snakepit_trio", "call", "my_tools:MyTools", "greet", '{"name": "you"}')
    assert (call.returncode, json.loads(call.stdout)) == (0, "Hello, you!")
    installed = any(point.value == "snakepit_trio.testing.plugin" for point in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "snakepit_trio.testing.plugin"]
    tests = run(
        place, "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers", "-W", "error", "-p", "no:asyncio", *plugin
    )
    assert tests.returncode == 0, tests.stdout
    assert "8 passed" in tests.stdout
    again = run(tmp_path, "snakepit_trio", "new", "my_tools")
    assert again.returncode == 1
    assert "already exists" in again.stderr


@pytest.mark.parametrize("name", ["my-tools", "1st", "class", "../up", "json", "_private", "naïve", ""])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, "snakepit_trio", "new", name)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
