"""Debuggers, coverage and faulthandler in workers, as docs/testing.md tells to use them."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from tests.documents import ROOT, read_page

pytestmark = pytest.mark.anyio
TOOLS = """
import ctypes, faulthandler, signal, time
import snakepit_trio as sp

faulthandler.register(signal.SIGUSR1)

@sp.tool
def stops(a: int) -> int:
    total = a + 1
    breakpoint()
    return total

@sp.tool
def hangs_here() -> None:
    time.sleep(60)

@sp.tool
def faults_here() -> None:
    ctypes.string_at(0)
"""
PROGRAM = """
import anyio
import snakepit_trio as sp

async def main():
    async with sp.open_pool("sums", size=1) as pool:
        await pool.execute("add", {"a": 1, "b": 2})

if __name__ == "__main__":
    anyio.run(main)
"""
SUMS = """import snakepit_trio as sp

@sp.tool
def add(a: int, b: int) -> int:
    total = a + b
    return total
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "debugged.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def blocks() -> dict[str, str]:
    return {block.name: block.text for block in read_page(ROOT / "docs" / "testing.md").blocks if block.name}


async def test_a_breakpoint_is_refused_and_says_what_to_do(place: Path) -> None:
    async with sp.open_pool("debugged", size=1) as pool:
        with pytest.raises(sp.remote(RuntimeError), match="has no terminal: name a debugger that listens on a port"):
            await pool.execute("stops", {"a": 1})


@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
async def test_a_breakpoint_that_listens_on_a_port(place: Path, start_method: Any) -> None:
    (place / "remote_pdb.py").write_text(blocks()["remote_pdb.py"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    env = {"PYTHONBREAKPOINT": "remote_pdb.set_trace", "PDB_PORT": str(port)}
    heartbeats = {"heartbeat_interval": 0.1, "heartbeat_misses": 3}
    async with sp.open_pool("debugged", size=1, env=env, timeout=None, start_method=start_method, **heartbeats) as pool:
        results: list[int] = []

        async def call() -> None:
            results.append(await pool.execute("stops", {"a": 1}))

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(call)
            with anyio.fail_after(30):
                while True:
                    try:
                        stream = await anyio.connect_tcp("127.0.0.1", port)
                        break
                    except OSError:
                        await anyio.sleep(0.02)
                # Longer than a worker without heartbeats would live.
                await anyio.sleep(0.5)
                await stream.send(b"p 'total is', total\nc\n")
                said = b""
                while b"total is" not in said:
                    said += await stream.receive()
        await stream.aclose()
        assert results == [2]
        assert b"('total is', 2)" in said
        assert pool.stats().restarts == 0


async def test_where_a_worker_hangs_and_where_it_crashes(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "snakepit_trio")
    async with sp.open_pool("debugged", size=1) as pool:
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(pool.execute, "hangs_here")
            with anyio.fail_after(30):
                while not pool.stats().busy:
                    await anyio.sleep(0.01)
                while "in hangs_here" not in caplog.text:
                    os.kill(pool.workers()[0].pid, signal.SIGUSR1)  # type: ignore[arg-type]
                    await anyio.sleep(0.05)
            nursery.cancel_scope.cancel()
        with pytest.raises(sp.WorkerCrashed) as caught:
            await pool.execute("faults_here")
        assert caught.value.details["reason"] == "segfault" and caught.value.details["stderr"]
        assert "Fatal Python error: Segmentation fault" in caplog.text and "in faults_here" in caplog.text


def test_coverage_of_forked_workers(tmp_path: Path) -> None:
    coverage = pytest.importorskip("coverage")
    if coverage.version_info < (7, 10):
        pytest.skip("coverage 7.10 patches subprocesses")
    text = (ROOT / "docs" / "testing.md").read_text()
    found = re.search(r"```ini\n(.*?)```", text, re.DOTALL)
    assert found
    (tmp_path / ".coveragerc").write_text(found[1] + "source = .\n")
    (tmp_path / "sums.py").write_text(SUMS)
    (tmp_path / "main.py").write_text(PROGRAM)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "coverage", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            check=False, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("run", "main.py")
    run("combine")
    report = run("report", "--include", "sums.py")
    assert re.search(r"sums\.py +5 +0 +100%", report), report
