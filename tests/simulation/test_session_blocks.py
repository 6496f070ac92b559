"""Several blocks of one session, with affinities and `on_lost` of their own, on a clock that jumps: nothing moves silently.

A seed draws a walk: blocks are opened and left, call at once and in turn, beside others' load; workers are killed. The model
keeps the *eras* of the session: from the first strict block on, its calls run in one worker, until that one dies.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any
from unittest import mock

import anyio
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio.testing import ScriptedWorkers
from snakepit_trio.testing.scripted_worker import ScriptedWorker


class Recorded(ScriptedWorker):
    """Writes down which call begins where."""

    async def _perform(self, call: Any, params: Any) -> Any:
        assert isinstance(self.world, Workers)
        self.world.ran.append((params["number"], self.spec.worker_id, trio.current_time()))
        return await super()._perform(call, params)


class Workers(ScriptedWorkers):
    def __init__(self) -> None:
        super().__init__({"work": self.work}, seed=1)
        self.ran: list[tuple[int, str, float]] = []

    async def start(self, spec: Any) -> ScriptedWorker:
        worker = Recorded(self, spec)
        self.alive[worker] = None
        return worker

    async def work(self, number: int, seconds: float) -> int:
        await anyio.sleep(seconds)
        return number


class Block:
    """One block that has the session open."""

    def __init__(self, session: sp.Session, manager: Any, affinity: str, on_lost: str, detach: bool) -> None:
        self.session = session
        self.manager = manager
        self.affinity = affinity
        self.on_lost = on_lost
        self.detach = detach
        #: The eras in which its calls ran.
        self.eras: set[int] = set()


class Call:
    def __init__(self, number: int, block: Block, strict: bool, rebuilds: bool) -> None:
        self.number = number
        self.block = block
        self.strict = strict
        self.rebuilds = rebuilds
        self.begun = trio.current_time()
        self.outcome = ""
        self.lost_before = False
        #: Its session has a worker, and has what it needs there.
        self.tied = not rebuilds and block.session.worker_id is not None


class Walk:
    def __init__(self, seed: int, pool: sp.Pool, workers: Workers, nursery: trio.Nursery) -> None:
        self.rng = random.Random(seed)
        self.pool = pool
        self.workers = workers
        self.nursery = nursery
        self.blocks: list[Block] = []
        self.calls: dict[int, Call] = {}
        self.under_way = 0
        self.rebuilding = 0
        self.died: dict[str, float] = {}
        self.gone: set[str] = set()
        self.rebuilt: list[str] = []
        #: A strict block has left the session to whoever resumes it.
        self.kept = False
        #: The workers of the session, one after the other, from its first strict block on.
        self.eras: list[str] = []
        self.seen: Counter[str] = Counter()
        self.checked = 0
        #: When its calls began here, and when they were made.
        self.order: list[tuple[float, float]] = []

    async def open(self) -> None:
        affinity = self.rng.choice(["hint", "hint", "hint", "strict_queue", "strict_fail_fast"])
        kind = self.rng.choice(["error", "rebind", "function"])

        async def rebuild(session: sp.Session) -> None:
            if self.rng.random() < 0.2:
                self.seen["a rebuild that fails"] += 1
                raise OSError("not now")
            self.rebuilding += 1
            try:
                await self.call(block, rebuilds=True)
            finally:
                self.rebuilding -= 1
            found = block.session.worker_id
            assert found is not None and found not in self.rebuilt, "rebuilt twice"
            self.rebuilt.append(found)

        detach = self.rng.random() < 0.3
        if self.blocks and self.rng.random() < 0.5:
            await self.idle()
        tied_to = self.blocks[0].session.worker_id if self.blocks else None
        manager = self.pool.session(
            "s", affinity=affinity, on_lost=rebuild if kind == "function" else kind, detach=detach
        )
        block = Block(await manager.__aenter__(), manager, affinity, kind, detach)
        if self.blocks and affinity != "hint" and not self.is_strict and tied_to is not None and not self.under_way:
            assert block.session.worker_id == tied_to, "a strict block has moved the session"
            self.seen["a strict block joins"] += 1
        self.blocks.append(block)

    async def leave(self) -> None:
        if len(self.blocks) > 1:
            await self.idle()
            block = self.blocks.pop(self.rng.randrange(1, len(self.blocks)))
            self.kept = self.kept or (block.detach and block.affinity != "hint")
            self.check()
            was, tied_to = self.is_strict or block.affinity != "hint", self.blocks[0].session.worker_id
            await block.manager.__aexit__(None, None, None)
            if was and not self.is_strict:
                assert tied_to is None or self.blocks[0].session.worker_id == tied_to
                self.seen["the last strict block leaves"] += 1
                self.eras = []
                for block in self.blocks:
                    block.eras.clear()

    @property
    def is_strict(self) -> bool:
        return self.kept or any(block.affinity != "hint" for block in self.blocks)

    async def call(self, block: Block, *, rebuilds: bool = False) -> None:
        number = len(self.calls) + 1
        call = self.calls[number] = Call(number, block, self.is_strict, rebuilds)
        call.tied = call.tied and not self.rebuilding
        call.lost_before = block.on_lost == "error" and any(self.eras[era] in self.gone for era in block.eras)
        seconds = 0.0 if rebuilds else self.rng.choice([0.0, 0.01, 0.3])
        try:
            found = await block.session.execute("work", {"number": number, "seconds": seconds})
        except sp.WorkerBusy:
            call.outcome = "busy"
        except sp.SessionWorkerUnavailable:
            call.outcome = "lost"
        except sp.WorkerCrashed:
            call.outcome = "crashed"
        except OSError:
            call.outcome = "not rebuilt"
        else:
            call.outcome = "done"
            assert found == number
        if rebuilds and call.outcome != "done":
            raise sp.SessionWorkerUnavailable("not rebuilt")

    async def start_calls(self) -> None:
        async def one(block: Block) -> None:
            self.under_way += 1
            try:
                await self.call(block)
            finally:
                self.under_way -= 1

        for _ in range(self.rng.randint(1, 4)):
            self.nursery.start_soon(one, self.rng.choice(self.blocks))
        await trio.sleep(0.001)

    async def load(self) -> None:
        """Others use the pool too."""

        async def other() -> None:
            try:
                await self.pool.execute("work", {"number": 0, "seconds": 0.05})
            except sp.WorkerCrashed:
                pass

        for _ in range(self.rng.randint(1, 4)):
            self.nursery.start_soon(other)
        await trio.sleep(0.001)

    async def kill(self) -> None:
        tied = self.blocks[0].session.worker_id
        found = [worker.id for worker in self.pool.workers() if worker.state in ("ready", "busy")]
        if not found:
            return
        victim = tied if tied in found and self.rng.random() < 0.7 else self.rng.choice(found)
        async with self.pool.runtime.events.subscribe("worker.gone") as events:
            self.died[victim] = trio.current_time()
            self.pool.kill_worker(victim)
            async for event in events:
                if event.metadata["worker_id"] == victim:
                    break
        self.gone.add(victim)
        self.seen["its worker dies" if victim == tied else "another worker dies"] += 1

    async def wait(self) -> None:
        await trio.sleep(self.rng.choice([0.005, 0.05, 1.0]))

    async def idle(self) -> None:
        while self.under_way:
            await trio.sleep(0.1)

    # ---- the rules ---------------------------------------------------------------------------------

    def check(self) -> None:
        for number, worker, at in self.workers.ran[self.checked :]:
            self.checked += 1
            call = self.calls.get(number)
            if call is not None and call.tied:
                assert not any(start < at and begun > call.begun for start, begun in self.order), "overtaken"
                self.order.append((at, call.begun))
            if call is None or not call.strict:
                continue
            if not self.eras or self.eras[-1] != worker:
                assert worker not in self.eras
                if self.eras:
                    assert self.died.get(self.eras[-1], math.inf) <= at, "moved while its worker was there"
                    self.seen["begins anew"] += 1
                self.eras.append(worker)
            era = len(self.eras) - 1
            block = call.block
            block.eras.add(era)
            assert not call.lost_before, "moved silently"
            if block.on_lost == "function" and era and not call.rebuilds:
                assert worker in self.rebuilt, "not rebuilt"
                self.seen["runs in what was rebuilt"] += 1
            if block.affinity == "strict_fail_fast" and call.tied:
                assert at == pytest.approx(call.begun, abs=0.0005), "waited"
        for call in self.calls.values():
            if call.outcome == "busy":
                assert call.block.affinity == "strict_fail_fast"
            if call.outcome == "crashed":
                assert not call.strict
            if call.lost_before and call.outcome:
                assert call.outcome == "lost", call.outcome
                self.seen["an error stays"] += 1
                call.lost_before = False
            if call.outcome:
                self.seen[f"{call.block.affinity}: {call.outcome}"] += 1
                if call.strict and call.block.affinity == "hint":
                    self.seen[f"hint beside strict: {call.outcome}"] += 1
        for number in [number for number, call in self.calls.items() if call.outcome]:
            if not any(number == other for other, *_ in self.workers.ran[self.checked :]):
                self.calls[number].outcome = ""
                self.calls[number].lost_before = False


_STEPS = {"open": 2, "leave": 2, "start_calls": 6, "load": 2, "kill": 1.5, "wait": 5}
_MET = (
    "hint: done", "hint: crashed", "hint: lost", "strict_queue: done", "strict_queue: lost", "strict_fail_fast: done",
    "strict_fail_fast: busy", "strict_fail_fast: lost", "hint beside strict: done", "hint beside strict: lost",
    "a strict block joins", "the last strict block leaves", "its worker dies", "another worker dies", "begins anew", "runs in what was rebuilt", "an error stays",
    "a rebuild that fails",
)  # fmt: skip


async def walk(seed: int) -> Counter[str]:
    workers = Workers()
    options: Any = {"size": 3, "prefetch": 0, "restart_limit": None, "backoff_max": 0.05, "poison_limit": None}
    async with workers, workers.open_pool(queue_timeout=None, **options) as pool, trio.open_nursery() as nursery:
        found = Walk(seed, pool, workers, nursery)
        kinds, weights = zip(*_STEPS.items(), strict=True)
        with trio.fail_after(1000):
            await found.open()
            for _ in range(60):
                await getattr(found, found.rng.choices(kinds, weights)[0])()
                found.check()
            await found.idle()
            found.check()
            for block in reversed(found.blocks):
                await block.manager.__aexit__(None, None, None)
    return found.seen


def test_nothing_moves_silently() -> None:
    seen: Counter[str] = Counter()
    for seed in range(40):
        try:
            seen += trio.run(walk, seed, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise
    assert all(seen[outcome] >= 3 for outcome in _MET), {
        outcome: seen[outcome] for outcome in _MET if seen[outcome] < 3
    }


def test_what_waits_for_a_worker_goes_to_any_when_the_last_strict_block_has_left() -> None:
    """Its order is kept: a call that comes later does not begin earlier, in another worker."""

    async def main() -> None:
        workers = Workers()
        async with workers, workers.open_pool(size=2, prefetch=0) as pool, trio.open_nursery() as nursery:
            with trio.fail_after(100):
                async with pool.session("s") as hint:
                    async with pool.session("s", affinity="strict_queue") as strict:
                        await strict.execute("work", {"number": 1, "seconds": 0})
                        for number in (2, 3, 4):
                            # The first of them occupies the worker.
                            nursery.start_soon(hint.execute, "work", {"number": number, "seconds": 1})
                            await trio.sleep(0.01)
                        assert [number for number, *_ in workers.ran] == [1, 2]
                    # The other worker takes one at once, in its turn.
                    await trio.sleep(0.01)
                    nursery.start_soon(hint.execute, "work", {"number": 5, "seconds": 0})
                    await trio.sleep(0.01)
                    assert [number for number, *_ in workers.ran] == [1, 2, 3]
                    while len(workers.ran) < 5:
                        await trio.sleep(0.01)
                    assert [number for number, *_ in workers.ran] == [1, 2, 3, 4, 5]
                    await trio.sleep(2)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("fails", [False, True])
def test_calls_that_wait_for_a_rebuild_begin_in_their_order(fails: bool) -> None:
    async def main() -> None:
        workers, attempts = Workers(), 0

        async def rebuild(session: sp.Session) -> None:
            nonlocal attempts
            attempts += 1
            await trio.sleep(1)
            if fails and attempts == 1:
                raise OSError("not now")

        async def call(session: sp.Session, number: int) -> None:
            try:
                await session.execute("work", {"number": number, "seconds": 0.1})
            except OSError:
                assert number == 1

        async with workers, workers.open_pool(size=2, prefetch=0) as pool:
            async with pool.session("s", affinity="strict_queue", on_lost=rebuild) as session:
                await session.execute("work", {"number": 0, "seconds": 0})
                assert session.worker_id is not None
                pool.kill_worker(session.worker_id)
                await trio.sleep(0.5)
                async with trio.open_nursery() as nursery:
                    for number in range(1, 8):
                        nursery.start_soon(call, session, number)
                        await trio.sleep(0.01)
        assert [number for number, *_ in workers.ran] == [0, *range(2 if fails else 1, 8)]

    for seed in range(5):
        # Trio shuffles the tasks that can run.
        with mock.patch.object(trio._core._run, "_r", random.Random(seed)):
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
