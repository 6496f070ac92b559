"""A pool in the portable form, in a host of its own; see ``snakepit_trio._platform``. ``nox -s portable`` runs much more so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from snakepit_trio import _platform

ROOT = Path(__file__).resolve().parents[2]

HOST = """
import json, os, sys
import anyio
import snakepit_trio as sp
from snakepit_trio import _platform

BIG = bytes(range(256)) * 4096

async def starts_helpers():
    async with sp.open_pool(os.environ["ADAPTER"], size=1) as pool:
        print(json.dumps({"form": _platform.FORM, "pids": [await pool.execute("pid")]}), flush=True)
        await anyio.sleep_forever()

async def main():
    async with sp.open_pool("tests.adapters.basic", size=2, start_method=sys.argv[2]) as pool:
        assert await pool.execute("add", {"a": 1, "b": 2}) == 3
        assert bytes(await pool.execute("echo", {"value": BIG})) == BIG
        first = {worker.pid for worker in pool.workers()}
        try:
            await pool.execute("leave", {"code": 3})
        except sp.WorkerCrashed as exc:
            crash = {name: exc.details.get(name) for name in ("reason", "exit_code", "signal")}
        else:
            crash = None
        await pool.wait_ready(timeout=30)
        now = {worker.pid for worker in pool.workers()}
        print(json.dumps({
            "form": _platform.FORM, "crash": crash, "new": len(now - first), "pids": sorted(now),
        }), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)

anyio.run(starts_helpers if "ADAPTER" in os.environ else main, backend=sys.argv[1])
"""


@contextmanager
def host(
    backend: str, method: str, state: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A host that has made a few calls and keeps its pool open until it is told to end, and what it has found."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, backend, method], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, _platform.VARIABLE: "1", "SNAKEPIT_STATE_DIR": str(state), "TMPDIR": str(state), "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["fork_server", "spawn"])
async def test_calls_a_crash_and_the_death_of_the_host(method: str, anyio_backend: str, tmp_path: Path) -> None:
    with host(anyio_backend, method, tmp_path) as (process, found):
        assert (found["form"], found["new"]) == ("portable", 1)
        assert found["crash"] == {"reason": "exited", "exit_code": 3, "signal": None}
        # What is left is watched from outside, by whatever this test's own process has for it.
        family = {
            pid: _platform.open_process(pid) for pid in {child.pid for child in _platform.descendants(process.pid)}
        }
        assert family.keys() > set(found["pids"]) if method == "fork_server" else family.keys() >= set(found["pids"])
        process.kill()
        with anyio.fail_after(10):
            for member in family.values():
                await member.wait()
        for member in family.values():
            member.close()


@pytest.mark.anyio
async def test_an_end_in_good_order(anyio_backend: str, tmp_path: Path) -> None:
    with host(anyio_backend, "fork_server", tmp_path) as (process, _):
        family = [_platform.open_process(child.pid) for child in _platform.descendants(process.pid)]
        assert len(family) == 3
        said, _ = await anyio.to_thread.run_sync(process.communicate, "end\n")
        assert (process.returncode, said) == (0, "")
        assert all(member.ended() for member in family)
        for member in family:
            member.close()


@pytest.mark.anyio
async def test_what_an_import_has_started_in_its_group_goes_with_the_host(anyio_backend: str, tmp_path: Path) -> None:
    started = tmp_path / "started"
    options = {"HELPERS": str(started), "ADAPTER": "tests.adapters.has_helpers"}
    with host(anyio_backend, "fork_server", tmp_path, **options) as (process, found):
        assert found["form"] == "portable"
        pids = {kind: int(pid) for _, kind, pid in map(str.split, started.read_text().splitlines())}
        helpers = {kind: _platform.open_process(pid) for kind, pid in pids.items()}
        process.kill()
        try:
            with anyio.fail_after(10):
                await helpers["child"].wait()
        finally:
            # Those in sessions of their own are for the next run to end.
            for helper in helpers.values():
                with contextlib.suppress(ProcessLookupError):
                    helper.send_signal(signal.SIGKILL)
                helper.close()
