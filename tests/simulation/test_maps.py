"""Maps of every kind over scripted workers, on a clock that jumps: each input has one result, in its place, and nobody waits for ever.

A seed draws a pool (with workers or without, a short queue or a long one), the load that others put on it, and a map: its inputs,
some of which are refused on the spot, its options, the pauses of its reader. The model is a list: of each input its result, or
why there is none.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

import anyio
import pytest
import trio
import trio.lowlevel
import trio.testing

import snakepit_trio as sp
from snakepit_trio.config import LimitConfig
from tests.simulation.scripted import World
from tests.simulation.test_scaling import simulate, world_of

SEEDS = range(80)
#: What one input may come to.
_ERRORS = (sp.QueueFull, sp.WorkerCrashed, sp.RequestTimeout, sp.InvalidParameter)


class Map:
    """One seeded map over a pool of its own."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.count = rng.choice([0, 1, 5, 40])
        self.refused = {n for n in range(self.count) if rng.random() < 0.15}
        self.seconds = [rng.choice([0.0, 0.0005, 0.02, 0.5]) for _ in range(self.count)]
        self.tool = rng.choice(["work", "again"])
        self.elastic = rng.random() < 0.4
        size = rng.choice([1, 2, 4])
        self.pool_options: dict[str, Any] = {
            "size": size, "max_queue": rng.choice([1, 3, 1000, None]), "queue_timeout": None, "cancel_grace": 0.2,
            "threads": rng.choice([1, 1, 3]), "restart_limit": None, "backoff_max": 0.1, "poison_limit": None,
        }  # fmt: skip
        if self.elastic:
            self.pool_options.update(min_size=0, max_size=4, target_wait=0.05, scale_down_after=2.0)
        self.policies = rng.random() < 0.3
        if self.policies:
            self.pool_options["limits"] = [LimitConfig(concurrency=2)]
        self.options: dict[str, Any] = {
            "limit": rng.choice([None, None, 1, 3]), "ordered": rng.random() < 0.5,
            "timeout": rng.choice([None, None, 1.0]),
        }  # fmt: skip
        self.others = 0 if rng.random() < 0.5 else rng.choice([1, 6])
        self.pause = rng.choice([0.0, 0.0, 0.3, 8.0])
        self.crash = rng.choice([0.0, 0.0, 0.3])

    def inputs(self) -> Iterator[dict[str, Any]]:
        for number, seconds in enumerate(self.seconds):
            # A set of sets can't be sent: such an input is refused before it reaches the pool.
            yield {"seconds": seconds, "number": number, **({"odd": object()} if number in self.refused else {})}

    async def later_inputs(self) -> AsyncIterator[dict[str, Any]]:
        for params in self.inputs():
            await anyio.sleep(self.rng.choice([0.0, 0.01]))
            yield params

    async def run(self) -> None:
        world = World(self.rng.randrange(1 << 30), crash=self.crash, deaf=0, late=0, start_failure=0)
        pool = world.pool(**self.pool_options)
        async with (
            world,
            world.events.subscribe("request.rejected", "queue.") as events,
            trio.open_nursery() as nursery,
        ):
            await pool.open(nursery)
            if self.elastic:
                await trio.sleep(30)
                assert pool.stats().size == 0
            with trio.fail_after(500):
                async with trio.open_nursery() as load:
                    for _ in range(self.others):
                        load.start_soon(self.other, pool)
                    await trio.sleep(0.1)
                    before = pool.stats().rejected
                    found = await self.read(pool)
                    refusals = pool.stats().rejected - before
                    load.cancel_scope.cancel()
            self.check(found, refusals)
            told = 0
            while (event := events.receive_nowait()) is not None:
                told += event.name == "request.rejected"
            if not self.others:
                assert told == refusals
            await pool.aclose(drain=True)
            stats = pool.stats()
            assert stats.accepted == stats.completed + stats.failed + stats.cancelled + stats.timed_out
            nursery.cancel_scope.cancel()

    async def other(self, pool: sp.Pool) -> None:
        """Somebody else, who keeps the pool busy."""
        while True:
            try:
                await pool.execute("work", {"seconds": 0.2})
            except sp.QueueFull:
                self.seen["others refused"] += 1
                self.other_refusals = getattr(self, "other_refusals", 0) + 1
                await trio.sleep(0.05)
            except sp.WorkerCrashed:
                pass

    async def read(self, pool: sp.Pool) -> dict[int, Any]:
        found: dict[int, Any] = {}
        source: Any = self.later_inputs() if self.rng.random() < 0.3 else self.inputs()
        self.other_refusals = 0
        async with pool.map(self.tool, source, return_errors=True, **self.options) as results:
            async for result in results:
                assert results.index not in found, "two results of one input"
                if self.options["ordered"]:
                    assert results.index == len(found)
                found[results.index] = result
                if len(found) in (1, 5) and self.pause:
                    await trio.sleep(self.pause)
                    self.seen["paused"] += 1
        return found

    def check(self, found: dict[int, Any], refusals: int) -> None:
        assert sorted(found) == list(range(self.count)), "an input has no result"
        full = 0
        for number, result in found.items():
            if isinstance(result, sp.SnakepitError):
                assert isinstance(result, _ERRORS), result
                self.seen[type(result).__name__] += 1
                if isinstance(result, sp.InvalidParameter):
                    assert number in self.refused
                full += isinstance(result, sp.QueueFull)
                if isinstance(result, sp.WorkerCrashed):
                    assert self.crash
                if isinstance(result, sp.RequestTimeout):
                    # Waiting does not count, and nothing takes so long.
                    raise AssertionError("an input was charged for its waiting")
            else:
                assert number not in self.refused
                assert result == {"seconds": self.seconds[number], "number": number}
                self.seen["result"] += 1
        if full:
            # Only one whose turn it was with nothing of the map's own under way.
            assert self.others and self.pool_options["max_queue"] in (1, 3)
        # A map's own waiting for a place is no refusal.
        assert full <= refusals - self.other_refusals <= full + (self.others if self.policies else 0)
        self.seen["elastic"] += self.elastic and self.count > 0
        self.seen["policies"] += self.policies and self.count > 0


def test_every_input_has_one_result() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        made = Map(seed)
        try:
            # Trio shuffles the tasks that can run.
            with mock.patch.object(trio._core._run, "_r", random.Random(seed)):
                trio.run(made.run, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseException as exc:
            exc.add_note(f"seed {seed}: {made.pool_options} {made.options} others={made.others}")
            raise
        seen += made.seen
    for outcome in (
        "result",
        "QueueFull",
        "WorkerCrashed",
        "InvalidParameter",
        "paused",
        "elastic",
        "policies",
        "others refused",
    ):
        assert seen[outcome] > 2, (outcome, seen)


@pytest.mark.parametrize("ordered", [True, False])
def test_results_that_are_there_at_once_leave_others_their_turn(ordered: bool) -> None:
    async def body(pool: sp.Pool) -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        def refused() -> Iterator[dict[str, Any]]:
            while True:
                yield {"odd": object()}

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await trio.lowlevel.checkpoint()
            before, count = turns, 0
            with trio.CancelScope() as scope:
                async with pool.map("work", refused(), return_errors=True, ordered=ordered) as results:
                    async for result in results:
                        assert isinstance(result, sp.InvalidParameter)
                        count += 1
                        if count == 1000:
                            # From here on it is read under a cancelled scope.
                            scope.cancel()
                        assert count <= 1000
            assert scope.cancelled_caught
            assert turns - before >= 1000 // 16 - 1
            nursery.cancel_scope.cancel()

    simulate(body, size=1)


def test_inputs_with_permits_do_not_wait_for_inputs_that_wait_for_permits() -> None:
    """The worker is taken away while one input runs: those that have permits find no place, and the others no permit."""

    async def body(pool: sp.Pool) -> None:
        worker = pool.workers()[0].id
        inputs = [{"seconds": 0.1}] * 5
        async with pool.map("work", inputs, limit=5, return_errors=True) as results, trio.open_nursery() as nursery:
            found: list[Any] = []

            async def read() -> None:
                found.extend([result async for result in results])

            nursery.start_soon(read)
            await trio.sleep(0.05)
            pool.cordon(worker)
            with trio.fail_after(1):
                while len(found) < len(inputs):
                    await trio.sleep(0.01)
        # The one that ran has its result.
        assert Counter(type(one) for one in found) == {dict: 1, sp.QueueFull: 4}

    simulate(body, size=1, max_queue=0, limits=[LimitConfig(tools=("work",), concurrency=2)])


def test_an_input_that_runs_again_after_a_crash_has_its_time_anew() -> None:
    async def body(pool: sp.Pool) -> None:
        async def crash() -> None:
            for _ in range(3):
                await trio.sleep(0.6)
                world_of(pool).worker(pool.workers()[0].id).crash()

        async with trio.open_nursery() as nursery:
            async with pool.map("again", [{"seconds": 0.9}], timeout=1.0) as results:
                nursery.start_soon(crash)
                assert [result async for result in results] == [{"seconds": 0.9}]
        assert pool.stats().restarts == 3

    simulate(body, size=1, restart_limit=None, poison_limit=None)


def test_who_waits_for_workers_that_cannot_come_is_told() -> None:
    async def body(pool: sp.Pool) -> None:
        world_of(pool).behaviour.start_failure = 1.0
        with pytest.raises(sp.WorkerStartupError):
            await pool.resize(3)
        with pytest.raises(sp.WorkerStartupError):
            await pool.wait_ready()
        await pool.wait_ready(1)
        assert await pool.execute("work", {"seconds": 0.0}) == {"seconds": 0.0}

    simulate(body, size=1, restart_limit=1, restart_window=5.0, backoff_base=0.05, backoff_max=0.1)


def test_a_cordon_that_is_lifted_wakes_who_waits_for_workers() -> None:
    async def body(pool: sp.Pool) -> None:
        worker = pool.workers()[0].id
        pool.cordon(worker)
        ready = trio.Event()

        async def wait() -> None:
            await pool.wait_ready()
            ready.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(5)
            assert not ready.is_set()
            pool.cordon(worker, cordoned=False)
            with trio.fail_after(1):
                await ready.wait()

    simulate(body, size=2)


def _raising(inputs: int) -> Iterator[dict[str, Any]]:
    for number in range(inputs):
        yield {"seconds": 0.1 * (inputs - number), "number": number}
    raise KeyError("the file ends here")


async def _raising_later(inputs: int) -> AsyncIterator[dict[str, Any]]:
    for params in _raising(inputs):
        yield params


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("return_errors", [True, False])
@pytest.mark.parametrize("source", [_raising, _raising_later])
@pytest.mark.parametrize("policies", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_inputs_that_raise_do_not_overtake_the_results_before(
    ordered: bool, return_errors: bool, source: Any, policies: bool, count: int
) -> None:
    async def body(pool: sp.Pool) -> None:
        found: list[int] = []
        async with pool.map("work", source(count), ordered=ordered, return_errors=return_errors) as results:
            with pytest.raises(KeyError, match="the file ends here") as caught:
                async for result in results:
                    assert results.index == result["number"]
                    found.append(results.index)
            assert [result async for result in results] == [], "it is raised once"
        assert sorted(found) == list(range(count))
        assert found == sorted(found) or not ordered
        assert caught.value.__notes__ == [f"raised by the inputs of this map, instead of the one at index {count}"]

    simulate(body, size=2, limits=[LimitConfig(concurrency=3)] if policies else [])


def test_an_error_of_the_inputs_that_nobody_reads_up_to_is_not_raised() -> None:
    async def body(pool: sp.Pool) -> None:
        async with pool.map("work", _raising(3), ordered=False) as results:
            async for _ in results:
                break

    simulate(body, size=2)


def test_inputs_may_raise_an_error_of_the_librarys_own() -> None:
    """As inputs do that are themselves results of a pool: it is not taken for an internal error, and comes once."""

    async def inputs(pool: sp.Pool) -> AsyncIterator[dict[str, Any]]:
        yield {"seconds": 0.5, "number": 0}
        yield await pool.execute("work", {"seconds": 0.2}, timeout=0.1)

    async def body(pool: sp.Pool) -> None:
        async with pool.map("work", inputs(pool)) as results:
            assert (await anext(results))["number"] == 0
            with pytest.raises(sp.RequestTimeout):
                await anext(results)
            assert [result async for result in results] == []

    simulate(body, size=2)


def test_an_error_says_which_input_it_is_of() -> None:
    async def body(pool: sp.Pool) -> None:
        inputs = [{"seconds": 0.0}, {"seconds": 0.0, "odd": object()}, {"seconds": 0.0}]
        async with pool.map("work", inputs) as results:
            assert await anext(results) == {"seconds": 0.0}
            with pytest.raises(sp.InvalidParameter) as caught:
                await anext(results)
            assert caught.value.__notes__ == ["raised for the input at index 1 of this map"]
            assert await anext(results) == {"seconds": 0.0}

    simulate(body, size=1)
