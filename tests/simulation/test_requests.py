"""Thousands of schedules of arrivals, cancels, deadlines, crashes and late replies, each from a seed that replays it."""

from __future__ import annotations

import functools
import os
import random
from collections import Counter
from typing import Any

import anyio
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio.errors import SnakepitError
from tests.simulation.scripted import World

SEEDS = int(os.environ.get("SNAKEPIT_TEST_SEEDS", "300"))
BLOCK = 25
#: Between them, so many schedules have every outcome.
SHOWING = 40


async def one_request(pool: sp.Pool, rng: random.Random, outcomes: Counter[str], *, quick: bool) -> None:
    """One of many. Quick ones come all at once and take no time, but for the one that does: lines form at the workers."""
    await anyio.sleep(rng.uniform(0, 0.1 if quick else 1.5))
    tool = rng.choice(["work", "work", "again", "work" if quick else "stream"])
    params: dict[str, Any] = {"seconds": rng.choice([0] * 30 + [0.1] if quick else [0, 0.001, 0.01, 0.1])}
    timeout = rng.choice([None, 0.005, 0.05, 0.5])
    patience = rng.choice([float("inf"), float("inf"), 0, 0.003, 0.05])
    # A timeout and a scope at the same moment: either may win, and only one.
    if rng.random() < 0.1 and timeout is not None:
        patience = timeout
    outcome = "cancelled"
    with anyio.move_on_after(patience):
        try:
            if tool == "stream":
                params["n"] = rng.choice([0, 1, 5, 100])
                leave_at = rng.choice([None, 0, 3])
                async with pool.stream(tool, params, timeout=timeout) as chunks:
                    taken = 0
                    async for chunk in chunks:
                        assert chunk == taken
                        if taken == leave_at:
                            break
                        taken += 1
                        if rng.random() < 0.05:
                            await anyio.sleep(0.02)
                    else:
                        assert taken == params["n"]
            else:
                found = await pool.execute(tool, params, timeout=timeout, priority=rng.randint(-1, 1))
                assert found == params
            outcome = "completed"
        except SnakepitError as exc:
            outcome = type(exc).__name__
    outcomes[outcome] += 1


async def simulate(seed: int, seen: Counter[str]) -> tuple[Counter[str], sp.PoolStats]:
    rng = random.Random(seed)
    quick = rng.random() < 0.5
    world = World(
        seed,
        crash=rng.choice([0, 0.02, 0.1]),
        deaf=rng.choice([0, 0.3]),
        start_failure=rng.choice([0, 0.1]),
        delay=0.0002 if quick else 0.002,
    )
    pool = world.pool(
        size=rng.randint(1, 4),
        threads=rng.choice([1, 1, 3]),
        max_queue=rng.choice([2, 1000]),
        queue_timeout=rng.choice([0.02, 10.0]),
        cancel_grace=0.2,
        on_cancel=rng.choice(["kill", "kill", "abandon"]),
        max_requests=rng.choice([None, None, 5]),
        restart_limit=1000,
        cancel_set_size=rng.choice([2, 1024]),
        cancel_set_ttl=1.0,
        stop_grace=2.0,
        reject_hopeless=rng.random() < 0.2,
        **rng.choice(
            [{}, {}, {"max_size": 6, "min_size": rng.choice([0, 1]), "target_wait": 0.02, "scale_down_after": 0.2}]
        ),
    )
    outcomes: Counter[str] = Counter()
    finals: Counter[str] = Counter()
    count = 60
    async with world, anyio.create_task_group() as nursery:
        try:
            await pool.open(nursery)
        except sp.WorkerStartupError:
            await pool.aclose(drain=False)
            nursery.cancel_scope.cancel()
            return outcomes, pool.stats()
        async with world.events.subscribe("request.") as events:
            with trio.fail_after(600):
                async with anyio.create_task_group() as callers:
                    for _ in range(count):
                        callers.start_soon(functools.partial(one_request, pool, rng, outcomes, quick=quick))
                assert outcomes.total() == count
                # Every seat comes back, and every table is empty.
                await pool.wait_ready()
                while any(seats.load for seats in pool._scheduler.ledger.seats):
                    await anyio.sleep(0.05)
                while pool.stats().cancel_set_size:
                    await anyio.sleep(0.5)
            while (event := events.receive_nowait()) is not None:
                if event.name not in ("request.queued", "request.dispatched"):
                    finals[event.metadata["request_id"]] += 1
        stats = pool.stats()
        ended = stats.completed + stats.failed + stats.cancelled + stats.timed_out
        assert stats.accepted == ended + stats.in_flight + stats.queued
        assert (stats.in_flight, stats.queued) == (0, 0)
        assert stats.accepted + stats.rejected <= count
        assert len(pool._scheduler.ledger.deadlines) == 0
        assert set(finals.values()) <= {1}
        assert finals.total() == stats.accepted + stats.rejected
        await pool.aclose(drain=True)
        nursery.cancel_scope.cancel()
    seen["in line"] += world.held > 0
    seen["taken back"] += world.recalls
    return outcomes, stats


def run(
    seed: int, monkeypatch: pytest.MonkeyPatch, seen: Counter[str] | None = None
) -> tuple[Counter[str], sp.PoolStats]:
    # Trio shuffles its tasks: here by the seed, so that a schedule can be run again.
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(trio._core._run, "_r", random.Random(seed))
    clock = trio.testing.MockClock(autojump_threshold=0)
    try:
        return trio.run(simulate, seed, Counter() if seen is None else seen, clock=clock)
    except BaseException as exc:
        exc.add_note(f"seed {seed}: tests.simulation.test_requests.run({seed}, monkeypatch) replays it")
        raise


@pytest.mark.parametrize("block", range(SHOWING, SEEDS, BLOCK))
def test_no_schedule_loses_or_doubles_a_request(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(block, min(block + BLOCK, SEEDS)):
        run(seed, monkeypatch)


def test_the_same_seed_gives_the_same_history(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 7):
        assert run(seed, monkeypatch) == run(seed, monkeypatch)


def test_the_first_schedules_have_every_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    late = 0
    for seed in range(SHOWING):
        outcomes, stats = run(seed, monkeypatch, seen)
        seen += outcomes
        late += stats.late_replies
    wanted = {
        "completed",
        "cancelled",
        "RequestTimeout",
        "QueueTimeout",
        "QueueFull",
        "WorkerCrashed",
        "in line",
        "taken back",
    }
    assert wanted <= set(seen)
    assert late
