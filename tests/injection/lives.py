"""A runtime that is opened, used for a moment, and closed, with an exception while it opens or while it closes."""

from __future__ import annotations

import time
from typing import Any

import anyio

import snakepit_trio as sp
from snakepit_trio.testing.leaks import Footprint
from tests.injection import scenario
from tests.injection.sightings import tells_of_it
from tests.injection.tracing import Target

__all__ = ["run"]

#: Seconds that a call takes which is under way when the runtime closes.
_UNDER_WAY = 0.2
#: Seconds for what is on its way out to be gone.
_GONE = 3.0


def run(child: Any, phase: str, backend: str, store: str) -> None:
    """Try the child's targets, or count entries, in this phase: ``"opening"`` or ``"closing"``."""
    # What is loaded late is loaded now.
    anyio.run(_Life(child, "", store).main, backend=backend)
    if child.options.count:
        life = _Life(child, phase, store)
        anyio.run(life.main, backend=backend)
        counts = [[t.file, t.name, t.line, n] for t, n in sorted(child.side.counts.items())]
        child.tell(counts=counts, troubles=[])
        return
    for number, (target, entry) in enumerate(child.targets()):
        child.doing = number
        child.tell(begun=number)
        child.sightings.clear()
        before, begun = Footprint.take(), time.monotonic()
        life = _Life(child, phase, store, target, entry)
        raised: BaseException | None = None
        try:
            anyio.run(life.main, backend=backend)
        except BaseException as exc:
            raised = exc
        child.side.disarm()
        seconds = time.monotonic() - begun
        left = Footprint.take().grown_since(before)
        while left and time.monotonic() - begun - seconds < _GONE:
            time.sleep(0.05)
            left = Footprint.take().grown_since(before)
        told = child.sightings.found + ["caller"] * (life.told or tells_of_it(raised))
        child.tell(
            ended=number, told=told, path=child.side.hit, opened=life.opened, served=life.served, seconds=round(seconds, 2),
            raised=None if raised is None else f"{type(raised).__name__}: {raised}"[:500], faults=[f"leak: {one}" for one in left],
        )  # fmt: skip
        child.doing = None
        if left or child.side.spent:
            return


class _Life:
    def __init__(self, child: Any, phase: str, store: str, target: Target | None = None, entry: int = 0) -> None:
        self.child = child
        self.phase = phase
        self.store = store
        self.target = target
        self.entry = entry
        self.opened = False
        self.served = False
        self.told = False

    async def main(self) -> None:
        if self.phase == "opening":
            self.child.side.arm(self.target, self.entry, None)
        async with anyio.create_task_group() as others:
            async with sp.open_runtime(scenario.config(self.store)) as runtime:
                self.opened = True
                if self.phase == "opening":
                    self.child.side.disarm()
                pool = runtime.pool("main")
                await scenario.twenty(pool)
                self.served = True
                for _ in range(4):
                    others.start_soon(self._call, pool)
                while pool.stats().in_flight < 2:
                    await anyio.sleep(0.001)
                if self.phase == "closing":
                    self.child.side.arm(self.target, self.entry, None)
        if self.phase == "closing":
            self.child.side.disarm()

    async def _call(self, pool: sp.Pool) -> None:
        try:
            await pool.execute("nap", {"seconds": _UNDER_WAY})
        except sp.SnakepitError as exc:
            self.told = self.told or tells_of_it(exc)
