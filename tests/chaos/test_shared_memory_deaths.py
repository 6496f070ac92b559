"""Either side is killed at each step of a transfer through shared memory, and nothing of it is left.

Steps are lines of ``wire/memory.py``. All of them: ``SNAKEPIT_CHAOS_STEPS=1 pytest tests/chaos``.
"""

from __future__ import annotations

import gc
import os
import secrets
import subprocess
import sys
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest

import snakepit_trio as sp
from snakepit_trio import _platform
from snakepit_trio.wire.memory import THRESHOLD
from tests.chaos.endings import each_request_ends_once

ROOT = Path(__file__).resolve().parents[2]
STRIDE = int(os.environ.get("SNAKEPIT_CHAOS_STEPS", "0"))
HOST = """
import os, sys
import anyio, numpy as np
import sitecustomize
import snakepit_trio as sp

async def main():
    async with sp.open_pool("tests.adapters.arrays", size=1) as pool:
        print(pool.runtime.run_id, flush=True)
        sitecustomize.count(os.getpid())
        array = np.ones(1 << 20, np.uint8)
        for _ in range(2):
            assert (await pool.execute("echo", {"value": array})).all()
        async with pool.stream("pieces", {"n": 3, "size": 1 << 19}) as chunks:
            kept = [chunk async for chunk in chunks]
    print(sitecustomize.seen)

anyio.run(main, backend="trio")
"""


def file_of(pool: sp.Pool) -> int:
    """A descriptor of the file of the only worker."""
    [worker] = [worker for slot in pool.supervisor.slots for worker in slot.workers]
    fd: int | None = worker._resources.process.share()
    assert fd is not None
    return fd


def left(run_id: str) -> list[int]:
    """The processes of a run: what they have in memory goes with them."""
    return [process.pid for process in psutil.process_iter() if run_id in _words(process)]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.anyio
async def test_a_worker_that_dies_at_any_step_of_a_transfer() -> None:
    array = np.ones(2 * THRESHOLD, np.uint8)
    stride = STRIDE or 61
    step, died = 1 + secrets.randbelow(stride), 0
    with anyio.fail_after(120):
        async with sp.open_pool("tests.adapters.stepping", size=1, restart_limit=10_000, backoff_base=0.001) as pool:
            async with each_request_ends_once(pool) as ends:
                while True:
                    (worker,) = pool.workers()
                    file = file_of(pool)
                    await pool.execute("arm", {"step": step})
                    try:
                        for _ in range(2):
                            assert (await pool.execute("echo", {"value": array})).all()
                        async with pool.stream("pieces", {"n": 3, "size": THRESHOLD}) as chunks:
                            assert [int(chunk[-1]) async for chunk in chunks] == [0, 1, 2]
                        if await pool.execute("disarm"):
                            os.close(file)
                            break  # There are fewer steps.
                    except sp.WorkerCrashed:
                        pass
                    # It died, with a call or after it.
                    died += 1
                    while any(info.id == worker.id for info in pool.workers()):
                        await anyio.sleep(0.001)
                    # The memory is given back, but for a chunk that its consumer has got and the marks and the table.
                    gc.collect()
                    held = os.fstat(file).st_blocks * 512
                    os.close(file)
                    # The portable form gives it back with the file.
                    assert held <= THRESHOLD + 2 * os.sysconf("SC_PAGE_SIZE") or _platform.FORM == "portable", step
                    step += stride
                    await pool.wait_ready(timeout=20)
            assert died
            assert ends["request.failed"] <= died
            # What no worker has any more is not counted.
            assert pool.supervisor._slots._factory.shm.used <= 4 * 2 * THRESHOLD


def test_a_host_that_dies_at_any_step_of_a_transfer(tmp_path: Path) -> None:
    stride = STRIDE or 300
    step, killed = 1 + secrets.randbelow(stride), 0
    while True:
        host = subprocess.run(
            [sys.executable, "-c", HOST],
            check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
            env={
                **os.environ, "TMPDIR": str(tmp_path), "SNAKEPIT_STATE_DIR": str(tmp_path / "state"),
                "PYTHONPATH": f"{Path(__file__).parent / 'steps'}:{ROOT}",
                "SNAKEPIT_STEP": str(step), "SNAKEPIT_STEP_FILES": "wire/memory.py",
            },
        )  # fmt: skip
        assert host.returncode in (0, -9), host.stderr
        run_id = host.stdout.split()[0]
        if host.returncode == 0:
            assert not left(run_id)
            break
        killed += 1
        # The next run, on the same state directory, ends what is there.
        swept = subprocess.run(
            [sys.executable, "-m", "snakepit_trio", "cleanup"],
            check=True, capture_output=True, cwd=ROOT, timeout=60,
            env={**os.environ, "SNAKEPIT_STATE_DIR": str(tmp_path / "state")},
        )  # fmt: skip
        assert not left(run_id), (step, swept.stdout)
        step += stride
    assert killed
