"""The README's code and commands do what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with the README's files."""
    for language, text in BLOCKS:
        name = re.match(r"# (\w+\.py)\n", text)
        if language == "python" and name:
            (tmp_path / name[1]).write_text(text)
    return tmp_path


def run(command: list[str], cwd: Path, stdin: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=90, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_prints_what_it_says(checkout: Path) -> None:
    (wanted,) = [text for language, text in BLOCKS if language == "text"]
    assert run([sys.executable, "main.py"], checkout) == wanted


def test_the_program_runs_on_asyncio_too(checkout: Path) -> None:
    main = checkout / "main.py"
    main.write_text(main.read_text().replace('backend="trio"', 'backend="asyncio"'))
    assert run([sys.executable, "main.py"], checkout).startswith("3\n")


def test_the_commands(checkout: Path) -> None:
    snakepit = [sys.executable, "-m", "snakepit_trio"]
    assert "Add two numbers." in run([*snakepit, "tools", "sums"], checkout)
    assert run([*snakepit, "call", "sums", "add", '{"a": 1, "b": 2}'], checkout) == "3\n"
    found = run([*snakepit, "map", "sums", "add", "-"], checkout, '{"a": 1, "b": 2}\n')
    assert json.loads(found)["result"] == 3
    for command in re.findall(r"^snakepit (\w+)", README, re.MULTILINE):
        assert command in {"tools", "call", "map", "demo"}


def test_every_link_leads_somewhere() -> None:
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
