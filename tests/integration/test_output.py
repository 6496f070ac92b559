"""What tools print, log and warn of, as the user of a program sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import logging, sys
import anyio
import snakepit_trio as sp

SETUP

async def main():
    async with sp.open_pool("tests.adapters.talking", size=1, OPTIONS) as pool:
        CALLS

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1])
"""
TALK = 'await pool.execute("talk"); await pool.execute("talk_async")'


def run(tmp_path: Path, *, setup: str = "", options: str = "", calls: str = TALK, backend: str = "trio") -> list[str]:
    """The lines that a program shows on standard error, without the worker's id; it prints nothing else."""
    text = PROGRAM.replace("SETUP", setup).replace("OPTIONS", options).replace("CALLS", calls)
    (tmp_path / "program.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "program.py", backend], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_program_that_sets_up_nothing_shows_them(tmp_path: Path, start_method: str, backend: str) -> None:
    shown = run(tmp_path, options=f"start_method={start_method!r}", backend=backend)
    importer = "import" if start_method == "fork_server" else ""
    # Each with the name of the worker, which prints in two streams: in order in each of them.
    for words, name in {
        "] imported": importer, "] WARNING talking [-] at import": importer,
        "] KeyError: 'plain'": "", "UserWarning: plain is old": "",
    }.items():  # fmt: skip
        (line,) = [line for line in shown if line.endswith(words)]
        assert line.startswith(f"[default {name}"), line
    for who in ("plain", "async"):
        (line,) = [line for line in shown if f"{who} warns" in line]
        name, _, text = line.partition("] ")
        assert name.startswith("[default ") and len(name.split()[1]) == 12
        assert text.startswith("WARNING talking [") and text.endswith(f"] {who} warns, password=[redacted]")
        assert f"{name}] {who} prints" in shown and f"{name}] {who} complains" in shown
        assert any(line.startswith(f"{name}] ERROR talking [") and line.endswith(f"] {who} fails") for line in shown)
    assert not any("nothing that matters" in line for line in shown)
    assert not any("<4>" in line or "<3>" in line for line in shown)


BASIC = 'logging.basicConfig(format="%(levelname)s %(name)s %(worker_id)s %(message)s"LEVEL)'


def test_a_program_that_logs_gets_each_at_its_level(tmp_path: Path) -> None:
    shown = run(tmp_path, setup=BASIC.replace("LEVEL", ", level=logging.INFO"))
    texts = [line.split(maxsplit=3) for line in shown if line.split(maxsplit=2)[1] == "snakepit_trio.worker"]
    levels = {text[3]: text[0] for text in texts}
    assert (levels["plain prints"], levels["plain complains"], levels["imported"]) == ("INFO",) * 3
    for text in texts:
        if "warns" in text[3] or "is old" in text[3] or "at import" in text[3]:
            assert text[0] == "WARNING"
        if "fails" in text[3] or "KeyError" in text[3]:
            assert text[0] == "ERROR"
    # Each once, and nothing beside the log.
    assert sum("plain warns" in line for line in shown) == 1
    assert not any(line.startswith("[default") for line in shown)


def test_a_program_that_logs_warnings_sees_the_rest_too(tmp_path: Path) -> None:
    shown = run(tmp_path, setup=BASIC.replace("LEVEL", ""))
    assert sum("plain warns" in line for line in shown) == 1
    assert any(line.startswith("WARNING snakepit_trio.worker") and "plain warns" in line for line in shown)
    assert any(line.startswith("[default ") and line.endswith("] plain prints") for line in shown)


@pytest.mark.parametrize(
    ("setup", "options", "seen"),
    [
        ("", "worker_output='discard'", False),
        ("", "worker_output='logging'", False),
        ("logging.getLogger('snakepit_trio').setLevel(logging.ERROR + 50)", "", False),
        ("logging.basicConfig(level=logging.INFO)", "worker_output='stderr'", True),
    ],
)
def test_what_the_application_has_said(tmp_path: Path, setup: str, options: str, seen: bool) -> None:
    shown = run(tmp_path, setup=setup, options=options)
    assert any(line.startswith("[default ") and line.endswith("] plain prints") for line in shown) == seen
    assert seen or shown == []
    assert sum("plain prints" in line for line in shown) <= 1


DIES = """
        try: await pool.execute("die")
        except sp.WorkerCrashed as error: assert error.details["stderr"].endswith("dies"), error.details
"""


def test_the_last_words_of_a_worker_that_dies(tmp_path: Path) -> None:
    shown = run(tmp_path, calls=DIES.strip())
    assert any(line.endswith("] begins to die") for line in shown)
    assert any("CRITICAL talking [" in line for line in shown)


MUCH = """
        import time
        gaps, began = [], []
        async def tick():
            while True:
                began[:] = [time.perf_counter()]
                await anyio.sleep(0.001)
                gaps.append(time.perf_counter() - began[0])
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(tick)
            await pool.execute("flood", {"lines": 50_000})
            nursery.cancel_scope.cancel()
        assert len(gaps) > 20
        print("shown till the end", file=sys.stderr)
"""


def test_megabytes_are_shown_and_the_event_loop_goes_on(tmp_path: Path) -> None:
    shown = run(tmp_path, calls=MUCH.strip())
    assert sum("x" * 100 in line for line in shown) == 50_000


def test_a_program_whose_standard_error_nobody_reads_is_not_held_up(tmp_path: Path) -> None:
    text = PROGRAM.replace("SETUP", "").replace("OPTIONS", "")
    text = text.replace("CALLS", 'await pool.execute("flood", {"lines": 20_000}); print("done", flush=True)')
    (tmp_path / "program.py").write_text(text)
    with subprocess.Popen(
        [sys.executable, "program.py", "trio"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        try:
            assert process.stdout.read() == "done\n"
            assert process.wait(30) == 0
            assert "x" * 100 in process.stderr.read()
        finally:
            process.kill()
