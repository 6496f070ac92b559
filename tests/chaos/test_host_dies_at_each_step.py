"""A host that is killed at any step of its workers' start leaves nothing, whichever side is at that step.

Steps are lines of source. All of them: ``SNAKEPIT_CHAOS_STEPS=1 pytest tests/chaos``; by default a few, others each time.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

import snakepit_trio as sp

ROOT = Path(__file__).resolve().parents[2]
STRIDE = int(os.environ.get("SNAKEPIT_CHAOS_STEPS", "900"))
HOST_FILES = (
    "launch/fork_server.py launch/process.py launch/spawn.py launch/choice.py launch/descriptors.py wire/memory.py"
    " supervision/worker.py supervision/resources.py supervision/slot.py supervision/process_registry.py supervision/run.py supervision/locks.py supervision/handshake.py"
    " supervision/exchange_link.py"
)
WORKER_FILES = (
    "worker/__main__.py worker/boot.py worker/main_thread.py worker/lifeline.py worker/server.py worker/service.py"
    " worker/exchange.py worker/shared_loop.py wire/memory.py launch/template.py has_children.py"
)
HOST = """
import os, sys
import anyio
import sitecustomize
import snakepit_trio as sp

async def main():
    method, side = sys.argv[1:]
    if side == "host":
        sitecustomize.count(os.getpid())
    else:
        os.environ["SNAKEPIT_STEP_HOST"] = str(os.getpid())
    async with sp.open_pool("tests.adapters.has_children", size=2, start_method=method, stop_grace=1) as pool:
        await pool.execute("child")
    print(sitecustomize.seen)

anyio.run(main, backend="trio")
"""


def test_the_files_whose_lines_are_steps_are_there() -> None:
    """A file that has got another name would have no steps any more."""
    places = [ROOT / "snakepit_trio", ROOT / "tests/adapters"]
    for name in [*HOST_FILES.split(), *WORKER_FILES.split()]:
        assert any((place / name).is_file() for place in places), name


def marked(mark: str) -> list[int]:
    """The processes that have inherited this from the host, those included that it never knew."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if mark.encode() in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
    return found


def run_host(method: str, side: str, step: int, place: Path) -> tuple[int, str]:
    """Returns how the host ended and what it said; nothing that it started is left a second later."""
    mark = f"SNAKEPIT_MARK={secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    host = subprocess.run(
        [sys.executable, "-c", HOST, method, side],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={
            **os.environ, name: value, "TMPDIR": str(place), "SNAKEPIT_STATE_DIR": str(place / "state"),
            "PYTHONPATH": f"{Path(__file__).parent / 'steps'}:{ROOT}", "SNAKEPIT_STEP": str(step),
            "SNAKEPIT_STEP_FILES": HOST_FILES if side == "host" else WORKER_FILES,
        },
    )  # fmt: skip
    ended = time.monotonic()
    while left := marked(mark):
        assert time.monotonic() - ended < 1, (step, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left])
        time.sleep(0.005)
    return host.returncode, host.stdout


@pytest.mark.parametrize("method", ["fork_server", "spawn"])
@pytest.mark.parametrize("side", ["host", "worker"])
def test_a_host_that_dies_while_workers_start_leaves_none(side: str, method: str, tmp_path: Path) -> None:
    step, killed = 1 + secrets.randbelow(STRIDE), 0
    while True:
        code, said = run_host(method, side, step, tmp_path)
        if code == 0:
            break  # The start has fewer steps.
        assert code == -9, (step, code, said)
        killed += 1
        step += STRIDE
    assert killed
    # What the killed ones had in their directories, the next run has removed.
    assert not list(tmp_path.glob("snakepit-*"))


class Canceller:
    """Cancels a scope at the n-th line of the host's files."""

    def __init__(self, step: int, scope: anyio.CancelScope) -> None:
        self.left = step
        self.scope = scope
        self.files = tuple(HOST_FILES.split())

    def __call__(self, frame: object, event: str, arg: object) -> object:
        if not frame.f_code.co_filename.endswith(self.files):  # type: ignore[attr-defined]
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()
        return self


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["fork_server", "spawn"])
async def test_a_start_that_is_cancelled_at_any_step_leaves_nothing(method: str) -> None:
    """The leak check of every test looks at what is left."""
    step, cancelled = 1 + secrets.randbelow(STRIDE), 0
    before = sys.gettrace()
    while True:
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            sys.settrace(Canceller(step, scope))  # type: ignore[arg-type]
            try:
                async with sp.open_pool("tests.adapters.has_children", size=2, start_method=method):
                    sys.settrace(before)
            finally:
                sys.settrace(before)
        if not scope.cancelled_caught:
            break
        cancelled += 1
        step += STRIDE
    assert cancelled
