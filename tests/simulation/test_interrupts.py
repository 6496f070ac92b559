"""Ctrl-C at any line of the library's, once and twice: KeyboardInterrupt arrives as itself, and every worker is gone.

By default a few lines, always the same; ``SNAKEPIT_TEST_INTERRUPTS=1000 SNAKEPIT_TEST_INTERRUPTS_SEED=1 pytest
tests/simulation/test_interrupts.py`` takes more, and others.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import anyio
import pytest
import trio

import snakepit_trio as sp
from snakepit_trio.testing import ScriptedWorkers

RUNS = int(os.environ.get("SNAKEPIT_TEST_INTERRUPTS", "8"))
SEED = int(os.environ.get("SNAKEPIT_TEST_INTERRUPTS_SEED", "7"))
RUNNERS: dict[str, Callable[[Any], object]] = {
    "trio": trio.run,
    "anyio": lambda main: anyio.run(main, backend="asyncio"),
    "asyncio": lambda main: asyncio.run(main()),
}
POLICIES = {"limits": [sp.LimitConfig(concurrency=2)], "hedge": sp.HedgeConfig(delay=0.001)}
#: How many lines after the first one the second comes.
LATER = (1, 3, 10, 30, 100, 300, 1000)


@sp.tool(idempotent=True)
async def add(a: int, b: int) -> int:
    await anyio.lowlevel.checkpoint()
    return a + b


async def count(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await anyio.lowlevel.checkpoint()
        yield number


async def inputs() -> AsyncIterator[dict[str, int]]:
    for number in range(3):
        await anyio.lowlevel.checkpoint()
        yield {"a": number, "b": 1}


class Interrupter:
    """Sends SIGINT at certain lines, counted from the first, of the library's and of contextlib's on its behalf."""

    def __init__(self, *steps: int) -> None:
        self.lines = 0
        self.left = list(steps)
        self.where: list[str] = []

    def __call__(self, frame: FrameType, event: str, arg: object) -> object:
        name = frame.f_code.co_filename
        ours = "/snakepit_trio/" in name or name.endswith("/contextlib.py")
        return self._line if ours and not _is_a_workers(frame) else None

    def _line(self, frame: FrameType, event: str, arg: object) -> object:
        if event in ("line", "return"):
            self.lines += 1
            if self.left and self.lines >= self.left[0]:
                del self.left[0]
                self.where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                signal.raise_signal(signal.SIGINT)
        return self._line


def _is_a_workers(frame: FrameType | None) -> bool:
    """Whether the code stands for a worker's, which is in another process."""
    while frame is not None:
        if "/testing/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def run(
    runner: str, *steps: int, workers: ScriptedWorkers | None, options: dict[str, Any]
) -> tuple[Interrupter, object]:
    """Returns what has counted the lines, and what the program has ended with."""

    async def main() -> None:
        assert workers is not None
        async with workers.open_pool(size=2, stop_grace=0.2, **options) as pool:
            await pool.execute("add", {"a": 1, "b": 2})
            async with pool.stream("count", {"n": 2}) as chunks:
                assert [chunk async for chunk in chunks] == [0, 1]
            async with pool.map("add", inputs()) as results:
                assert [result async for result in results] == [1, 2, 3]
            async with pool.session("s") as session:
                await session.execute("add", {"a": 1, "b": 2})
            await pool.resize(3)

    interrupter = Interrupter(*steps)
    ended: BaseException | None = None
    before = sys.gettrace()
    sys.settrace(interrupter)  # type: ignore[arg-type]
    try:
        RUNNERS[runner](main)
    except BaseException as exc:
        ended = exc
    finally:
        sys.settrace(before)
    return interrupter, ended


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("runner", [*RUNNERS, "trio, with policies"])
@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_at_any_line(
    runner: str, times: int, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    runner, _, policies = runner.partition(",")
    options = POLICIES if policies else {}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    # asyncio's own end of what a second one has stopped in its middle.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    rng = random.Random(SEED)
    try:
        lines = run(runner, workers=made(), options=options)[0].lines
        assert lines > 5000
        for number in range(RUNS):
            # Evenly over the whole of it; the last lines may not come, since no two runs have the same number of them.
            step = int((number + rng.random()) * lines * 0.95 / RUNS)
            steps = [step, step + rng.choice(LATER)][:times]
            workers: ScriptedWorkers | None = made()
            interrupter, ended = run(runner, *steps, workers=workers, options=options)
            assert type(ended) is KeyboardInterrupt, (SEED, interrupter.where, ended)
            if runner == "trio" or times == 1:
                # The second one strikes asyncio's loop wherever it is: a scope that it keeps from being left is an internal error,
                # and what is left of its tasks is cancelled at once.
                assert not workers.alive, (SEED, interrupter.where)
                assert not internal_errors, (SEED, interrupter.where)
            # With its traceback, which holds all that was under way.
            ended = workers = None
            gc.collect()
    finally:
        logging.getLogger("asyncio").setLevel(logging.NOTSET)
        signal.signal(signal.SIGINT, before)


def made() -> ScriptedWorkers:
    return ScriptedWorkers({"add": add, "count": count})
