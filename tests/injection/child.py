"""One process with one runtime, in which targets are tried one after another until one has left a mark.

Started by :mod:`tests.injection.trying`; writes lines of JSON to the descriptor that it is given.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import json
import logging
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

import snakepit_trio as sp
from tests.injection import lives, scenario
from tests.injection.checks import Size, amiss
from tests.injection.clients import Clients
from tests.injection.scenario import Record, Trouble
from tests.injection.sides import side_of
from tests.injection.sightings import Sightings
from tests.injection.tracing import Target

#: Seconds for everything to be as it was before.
_MENDED = 6.0


class Child:
    """The tries of one process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = os.fdopen(options.out, "w", buffering=1)
        self.side = side_of(options.side)
        self.sightings = Sightings()
        self.sightings.install()
        #: The try that is under way.
        self.doing: int | None = None

    def tell(self, **line: Any) -> None:
        self.out.write(json.dumps(line) + "\n")

    async def main(self) -> None:
        async with sp.open_runtime(scenario.config(self.options.store)) as runtime:
            scenario.register_host_tools(runtime)
            assert runtime.bridge is not None and runtime.metrics is not None and runtime.metrics.address is not None
            clients = Clients(
                runtime.bridge.address, runtime.bridge.token, str(runtime._run.control), runtime.metrics.address
            )
            thread = anyio.from_thread.start_blocking_portal(self.options.backend)
            portal = thread.__enter__()
            try:
                await _in_thread(portal.start_task, clients.serve)
                await Runtime(self, runtime, portal, clients).tries()
            finally:
                self.side.disarm()
                with anyio.move_on_after(5.0, shield=True):
                    await _in_thread(portal.call, clients.end)
                    await _in_thread(thread.__exit__, None, None, None)

    def targets(self) -> list[tuple[Target, int]]:
        return [(Target(*fields), entry) for *fields, entry in json.loads(Path(self.options.targets).read_text())]


class Runtime:
    """What is tried with one runtime."""

    def __init__(self, child: Child, runtime: sp.Runtime, portal: Any, clients: Clients) -> None:
        self.child = child
        self.side = child.side
        self.runtime = runtime
        # Asked for before anything is raised: nobody but the application would get what that raises.
        self.pools = runtime.pools
        self.portal = portal
        self.clients = clients
        self.reported: list[str] = []

    async def tries(self) -> None:
        # The first pass loads what is loaded late, and fills what is kept.
        child, record = self.child, await self.one_pass()
        if record.troubles:
            child.tell(unfit=[str(trouble) for trouble in record.troubles])
            return
        await self.mended(None)
        before, usual = Size(), self.restarts()
        if child.options.count:
            await self.arm(None, 0)
            record = await self.one_pass()
            self.side.disarm()
            counts = [[t.file, t.name, t.line, n] for t, n in sorted(self.side.counts.items())]
            child.tell(counts=counts, troubles=[str(trouble) for trouble in record.troubles])
            return
        for number, (target, entry) in enumerate(child.targets()):
            child.doing = number
            child.tell(begun=number)
            if not await self.one_try(target, entry, before, usual):
                return

    async def one_try(self, target: Target, entry: int, before: Size, usual: dict[str, int]) -> bool:
        begun, restarts = time.monotonic(), self.restarts()
        self.child.sightings.clear()
        await self.arm(target, entry)
        record = await self.one_pass()
        self.side.disarm()
        await scenario.undo(self.runtime)
        faults = await self.mended(before)
        after = Record()
        for pool in self.runtime.pools.values():
            await scenario.step(after, pool.name, scenario.twenty, pool)
        await scenario.step(after, "tasks", scenario.limited, self.runtime.pool("tasks"))
        await _in_thread(self.portal.call, self.clients.twenty, after)
        faults = faults or await self.mended(before)
        more = {name: count - restarts[name] - usual[name] for name, count in self.restarts().items()}
        self.child.tell(
            ended=self.child.doing,
            path=self.side.hit,
            troubles=list(map(_plain, record.troubles)),
            after=list(map(_plain, after.troubles)),
            faults=faults,
            told=self.child.sightings.found + ["caller"] * record.told,
            restarts={name: count for name, count in more.items() if count > 0},
            seconds=round(time.monotonic() - begun, 2),
        )
        self.child.doing = None
        return not (faults or after.troubles or self.side.spent)

    async def arm(self, target: Target | None, entry: int) -> None:
        # Not in a thread: it traces the one that it runs in.
        if self.child.options.side == "client":
            await _in_thread(self.side.arm, target, entry, self.portal)
        else:
            self.side.arm(target, entry, self.portal)

    async def one_pass(self) -> Record:
        ours, theirs = Record(), Record()
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(_in_thread, self.portal.call, self.clients.scenario, theirs)
            await scenario.in_host(self.runtime, self.pools, ours)
        ours.troubles += theirs.troubles
        ours.told = ours.told or theirs.told
        return ours

    async def mended(self, before: Size | None) -> list[str]:
        """What is not as it was, when there has been time enough."""
        until = time.monotonic() + _MENDED
        while True:
            found = amiss(self.runtime) or ([] if before is None else before.grown())
            if not found or time.monotonic() > until:
                return found
            await anyio.sleep(0.02)

    def restarts(self) -> dict[str, int]:
        return {pool.name: pool.stats().restarts for pool in self.runtime.pools.values()}


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await anyio.to_thread.run_sync(functools.partial(function, *args), abandon_on_cancel=True)


def _plain(trouble: Trouble) -> list[Any]:
    return [trouble.group, trouble.step, trouble.code, trouble.text, trouble.depth]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", required=True)
    parser.add_argument("--phase", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--out", type=int, required=True)
    parser.add_argument("--targets")
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    faulthandler.enable()
    logging.basicConfig(level=logging.WARNING)
    child = Child(options)
    try:
        if options.phase == "running":
            anyio.run(child.main, backend=options.backend)
        else:
            lives.run(child, options.phase, options.backend, options.store)
    except BaseException as exc:
        child.side.disarm()
        child.tell(torn=child.doing, path=child.side.hit, error="".join(traceback.format_exception(exc))[-20_000:])
    # A client that does not end is no reason to wait.
    os._exit(0)


if __name__ == "__main__":
    main()
