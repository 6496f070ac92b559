"""Commands in a terminal: what they print is where the user has sent it, whatever else the terminal shows."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "given.py").write_text(
        "import snakepit_trio as sp\n\n@sp.tool\ndef double(n: int, text: str = '') -> dict:\n"
        "    return {'twice': 2 * n, 'text': text}\n"
    )
    return tmp_path


def in_terminal(cwd: Path, *arguments: str, stdin: str, out: Any, err: Any = None) -> tuple[int, str]:
    """A command's exit code, and what the terminal shows; standard error is the terminal unless ``err`` says otherwise."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "snakepit_trio", *arguments], cwd=cwd, text=True, stdin=subprocess.PIPE,
        stdout=theirs if out is None else out, stderr=theirs if err is None else err,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "40"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        with contextlib.suppress(OSError):  # What Linux says when the last process has let go of it.
            while data := os.read(ours, 65536):
                shown += data
        os.close(ours)
        return process.wait(60), shown.decode()


LINES = '{"n": 1, "text": "[red]:smile: ' + "x" * 60 + '"}\n{"n": 2}\n'


@pytest.mark.parametrize("options", [(), ("--progress",), ("--no-progress",)])
def test_results_of_a_map_go_into_the_file(adapter: Path, options: tuple[str, ...]) -> None:
    with (adapter / "out.jsonl").open("w") as out:
        code, shown = in_terminal(adapter, "map", "given", "double", "-", *options, stdin=LINES, out=out)
    found = [json.loads(line) for line in (adapter / "out.jsonl").read_text().splitlines()]
    assert code == 0
    assert sorted(line["result"]["twice"] for line in found) == [2, 4]
    assert "twice" not in shown
    assert ("2/?" in shown) == (options != ("--no-progress",)), shown


def test_results_of_a_map_go_through_the_pipe_while_the_bar_goes_into_a_file(adapter: Path) -> None:
    with (adapter / "out.jsonl").open("w") as out, (adapter / "err").open("w") as err:
        code, shown = in_terminal(adapter, "map", "given", "double", "-", "--progress", stdin=LINES, out=out, err=err)
    assert (code, shown) == (0, "")
    assert len((adapter / "out.jsonl").read_text().splitlines()) == 2
    assert "twice" not in (adapter / "err").read_text()


def test_results_and_bar_on_one_terminal(adapter: Path) -> None:
    """A line is not folded at the terminal's width, nor read as markup."""
    code, shown = in_terminal(adapter, "map", "given", "double", "-", "--ordered", stdin=LINES, out=None)
    assert code == 0
    assert "[red]:smile: " + "x" * 60 in shown
    assert shown.count('"twice"') == 2 and "2/?" in shown


def test_results_on_a_terminal_while_the_bar_goes_into_a_file(adapter: Path) -> None:
    with (adapter / "err").open("w") as err:
        code, shown = in_terminal(adapter, "map", "given", "double", "-", "--progress", stdin=LINES, out=None, err=err)
    assert code == 0
    assert shown.count('"twice"') == 2
    assert "twice" not in (adapter / "err").read_text()


@pytest.mark.parametrize(
    "command",
    [("demo", "--limit", "4", "--size", "2", "--no-kill", "--json"), ("demo", "--limit", "4", "--size", "2", "--no-kill"), ("tools", "given")],
    ids=["demo --json", "demo", "tools"],
)  # fmt: skip
def test_what_a_command_prints_goes_into_the_file(adapter: Path, command: tuple[str, ...]) -> None:
    with (adapter / "out").open("w") as out:
        code, shown = in_terminal(adapter, *command, stdin="", out=out)
    text = (adapter / "out").read_text()
    assert code == 0
    if "--json" in command:
        assert json.loads(text)["modules"] == 4
        assert shown == ""
    else:
        assert ("modules" if command[0] == "demo" else "double") in text
        assert "complexity" not in shown and "double" not in shown
