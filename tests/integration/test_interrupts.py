"""Ctrl-C and an exit out of a signal's handler, once and twice, at any moment: they arrive as what they are; nothing is left."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Signals come at events of the runtime, so at the same moments each time, and in whichever task has emitted them.
PROGRAM = """
import asyncio, gc, json, logging, os, signal, sys
import anyio, psutil, trio
import snakepit_trio as sp
from snakepit_trio.observe.events import EventBus

logging.getLogger("asyncio").setLevel(logging.CRITICAL)
# What tasks have not been waited for says so, on a loop that was stopped in the middle of its work.
sys.unraisablehook = lambda _: None
runner, method, number = sys.argv[1:4]
pending = []

def leave(*_):
    sys.exit("asked to")

def interrupt():
    signal.raise_signal(int(number))

def check(name, measurements, metadata):
    if pending and name == pending[0]:
        del pending[0]
        interrupt()

EventBus.check = staticmethod(check)

async def main():
    async with sp.open_pool("tests.adapters.basic", size=2, start_method=method, stop_grace=2.0) as pool:
        await pool.execute("add", {"a": 1, "b": 2})
        check("body", {}, {})
        await pool.execute("add", {"a": 1, "b": 2})

def descriptors():
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))

before = None
for moments in [[], *json.loads(sys.argv[4])]:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, leave)
    pending[:] = moments
    end = None
    try:
        if runner == "trio":
            trio.run(main)
        elif runner == "anyio":
            anyio.run(main, backend="asyncio")
        else:
            asyncio.run(main())
    except BaseException as exc:
        end = exc
    found = [type(end).__name__, str(end), list(pending)]
    del end
    gc.collect()
    children = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    found.append([" ".join(child.cmdline())[-100:] for child in children])
    if before is None:
        before = len(descriptors())
    else:
        found.append(len(descriptors()) - before)
        print(json.dumps([moments, found]), flush=True)
"""
MOMENTS = ["worker.starting", "worker.ready", "body", "pool.closing", "worker.draining"]
TWICE = [
    list(pair) for pair in itertools.combinations(MOMENTS, 2) if pair[1].endswith("ing") and pair != ("body", "body")
]


def run(tmp_path: Path, runner: str, method: str, number: int, moments: list[list[str]]) -> list[list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, runner, method, str(number), json.dumps(moments)],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SNAKEPIT_STATE_DIR": str(tmp_path / "state"), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert not done.returncode, done.stderr
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("snakepit-")]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("runner", ["trio", "anyio", "asyncio"])
def test_an_interrupt_arrives_as_what_it_is(runner: str, tmp_path: Path) -> None:
    moments = [[moment] for moment in MOMENTS]
    found = run(tmp_path, runner, "spawn" if runner == "anyio" else "fork_server", 2, moments)
    assert found == [[moment, ["KeyboardInterrupt", "", [], [], 0]] for moment in moments]


@pytest.mark.parametrize("runner", ["trio", "anyio", "asyncio"])
def test_so_does_the_second_one(runner: str, tmp_path: Path) -> None:
    for moments, (name, words, _, children, _) in run(tmp_path, runner, "fork_server", 2, TWICE):
        # A second one may come too late for some moments: nothing is told any more.
        assert (name, words, children) == ("KeyboardInterrupt", "", []), moments


@pytest.mark.parametrize("runner", ["trio", "anyio", "asyncio"])
def test_a_handler_of_a_signal_may_exit(runner: str, tmp_path: Path) -> None:
    for moments, (name, words, _, children, _) in run(tmp_path, runner, "fork_server", 15, [[m] for m in MOMENTS]):
        assert (name, words, children) == ("SystemExit", "asked to", []), moments
