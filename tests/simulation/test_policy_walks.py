"""Seeded walks over the policies of a pool: calls that come, wait, are tried again, hedged, cancelled; pools and sessions that end.

Everything above the wire is what runs in production. What a limit allows is a reference of a few lines over what the tools
themselves have seen, and over when calls were handed to the scheduler.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio.errors import SnakepitError
from snakepit_trio.pool.scheduling.request import Request
from snakepit_trio.testing import ScriptedWorkers

SEEDS = int(os.environ.get("SNAKEPIT_TEST_SEEDS", "100"))
BLOCK = 100
#: Seconds by which a moment may be missed: frames are under way, and clocks are floats.
SOON = 0.02

TOOLS = ("plain", "again", "chunks")


class Walk(trio.abc.Instrument):
    """One pool, those who call it, and what was seen of it."""

    def __init__(self, seed: int, seen: Counter[str]) -> None:
        rng = self.rng = random.Random(seed)
        self.seen = seen
        self.wrong: list[str] = []
        self.begins: list[tuple[float, str, str | None]] = []
        # When tools began (1) and stopped (-1), and for whom.
        self.marks: list[tuple[float, int, str, str | None]] = []
        self.arrivals: list[float] = []
        self.runs: Counter[int] = Counter()
        self.closed_at = self.ended_at = math.inf
        tools = {"plain": self.plain, "again": self.again, "chunks": self.chunks}
        self.world = ScriptedWorkers(
            tools,
            seed=seed,
            crash=rng.choice([0, 0, 0.05]),
            deaf=rng.choice([0, 0.5, 1]),
            late=rng.choice([0, 0.3]),
            delay=rng.choice([0, 0.001]),
        )
        self.world.idempotent.add("again")
        # Half of the walks look at one policy closely, the others at all of them together.
        self.focus = rng.choice(["permits", "tokens", "crossed", "hedges", "lines", "circuit", *["all"] * 5])
        self.limits = [self.limit() for _ in range(rng.randint(0, 3))]
        if self.focus == "permits":
            self.world.behaviour.deaf = 1.0
            self.limits = [sp.LimitConfig(per=rng.choice(["tool", "pool"]), concurrency=rng.choice([1, 2]))]
        elif self.focus == "tokens":
            self.limits = [sp.LimitConfig(per="pool", rate=rng.choice([5.0, 20.0]), burst=rng.choice([1, 3]))]
        elif self.focus == "crossed":
            # Who has a token of the first may have to wait for a permit of the second.
            rate = sp.LimitConfig(
                per=rng.choice(["session", "tool"]), rate=rng.choice([5.0, 20.0]), burst=rng.choice([1, 2])
            )
            self.limits = [sp.LimitConfig(per="pool", concurrency=1), rate]
        elif self.focus in ("hedges", "lines", "circuit"):
            self.limits = []
        self.retry = sp.RetryConfig(attempts=3, delay=0.3, on=["OSError"]) if rng.random() < 0.5 else None
        hedge = sp.HedgeConfig(delay=0.1, max_share=1.0)
        self.options: dict[str, Any] = {
            "size": rng.randint(1, 3),
            "threads": rng.choice([1, 1, 2]),
            "prefetch": rng.choice([0, 2]),
            "max_queue": rng.choice([0, 2, 1000]),
            "cancel_grace": rng.choice([0.1, 5.0]),
            "on_cancel": rng.choice(["kill", "abandon"]),
            "stop_grace": 0.5,
            "restart_limit": None,
            "poison_limit": None,
            "limits": self.limits,
            "retry": self.retry,
            "hedge": hedge
            if self.focus in ("hedges", "lines") or (self.focus == "all" and rng.random() < 0.4)
            else None,
            "circuit": sp.CircuitConfig(min_calls=5, open_for=0.5, window=3.0) if rng.random() < 0.3 else None,
        }
        if self.focus == "tokens":
            self.options |= {"circuit": None, "max_queue": 1000, "retry": None, "hedge": None}
            self.retry = None
        elif self.focus == "permits":
            self.options |= {"size": 3, "circuit": None, "max_queue": 1000, "cancel_grace": 5.0}
        elif self.focus == "hedges":
            self.options |= {"size": 2, "threads": 2, "max_queue": 1000, "circuit": None}
        elif self.focus == "lines":
            # Short calls, so that lines form, and a long one now and then.
            self.options |= {"size": 2, "threads": 1, "prefetch": 2, "max_queue": 1000, "circuit": None}
        elif self.focus == "circuit":
            self.options |= {
                "circuit": sp.CircuitConfig(min_calls=3, open_for=0.2, window=3.0),
                "max_queue": 1000,
                "retry": None,
            }
            self.retry = None

    def limit(self) -> sp.LimitConfig:
        rng = self.rng
        rate = rng.choice([None, 2.0, 5.0, 20.0])
        return sp.LimitConfig(
            tools=rng.choice([(), ("plain",), ("again", "chunks")]),
            per=rng.choice(["tool", "session", "pool"]),
            rate=rate,
            burst=None if rate is None else rng.choice([None, 1, 2]),
            concurrency=rng.choice([1, 2, 3]) if rate is None or rng.random() < 0.5 else None,
            wait=rng.random() < 0.9,
            max_waiting=rng.choice([1, 1000]),
        )

    # ---- the tools -------------------------------------------------------------------------------

    async def work(self, tool: str, who: int, seconds: float, session: str | None, fails: bool) -> int:
        self.runs[who] += 1
        self.marks.append((trio.current_time(), 1, tool, session))
        try:
            await trio.sleep(seconds)
            if fails:
                raise OSError("it fails")
            return who
        finally:
            self.marks.append((trio.current_time(), -1, tool, session))

    async def plain(self, **params: Any) -> int:
        return await self.work("plain", **params)

    async def again(self, **params: Any) -> int:
        return await self.work("again", **params)

    async def chunks(self, **params: Any) -> AsyncIterator[int]:
        yield 0
        yield await self.work("chunks", **params)

    # ---- the callers -----------------------------------------------------------------------------

    async def call(self, pool: sp.Pool, session: sp.Session | None, who: int) -> None:
        rng = self.rng
        await trio.sleep(rng.uniform(0, 2.0))
        tool = rng.choice(TOOLS)
        if self.focus in ("hedges", "lines"):
            tool = "again"
        elif self.focus == "circuit":
            tool = rng.choice(["chunks", "chunks", "plain"])
        name = None if session is None else session.id
        params = {"who": who, "seconds": rng.choice([0, 0.05, 0.5]), "session": name, "fails": rng.random() < 0.2}
        timeout = rng.choice([None, 0.2, 1.0, 5.0])
        patience = rng.choice([math.inf, math.inf, 0.0, 0.1, 0.6])
        target: Any = pool if session is None else session
        if self.focus == "permits":
            params["seconds"], timeout, patience = 0.5, rng.choice([None, 0.2]), rng.choice([math.inf, 0.1, 0.6])
        elif self.focus == "hedges":
            params["seconds"], timeout = rng.choice([0.05, 0.3, 0.5]), rng.choice([None, 5.0])
        elif self.focus == "lines":
            params["seconds"], timeout = rng.choice([0] * 9 + [0.3]), rng.choice([None, 5.0])
        elif self.focus == "crossed":
            timeout, patience = None, rng.choice([math.inf, math.inf, math.inf, 0.3])
        elif self.focus == "circuit":
            params["fails"] = rng.random() < 0.5
        elif self.focus == "tokens":
            self.arrivals.append(trio.current_time())
        began = trio.current_time()
        outcome = "cancelled"
        left_at = math.nan
        with trio.move_on_after(patience):
            try:
                if tool == "chunks":
                    async with target.stream(tool, params, timeout=timeout) as chunks:
                        async for _ in chunks:
                            pass
                        left_at = trio.current_time()
                else:
                    assert await target.execute(tool, params, timeout=timeout) == who
                outcome = "completed"
            except SnakepitError as exc:
                outcome = type(exc).__name__
                left_at = trio.current_time()
        self.seen[outcome] += 1
        now = trio.current_time() if math.isnan(left_at) else left_at
        grace = self.options["cancel_grace"] if tool == "chunks" else 0.0
        self.check(
            now <= began + min(math.inf if timeout is None else timeout, patience) + grace + SOON, f"late: {outcome}"
        )
        self.check(
            now <= max(self.closed_at, began) + self.options["stop_grace"] + grace + SOON,
            f"heard nothing of the close: {outcome}",
        )
        if session is not None and now > self.ended_at:
            self.check(
                now <= max(self.ended_at, began) + grace + SOON, f"heard nothing of its session's end: {outcome}"
            )
        self.seen["retried"] += self.retry is not None and self.runs[who] > 1
        self.check(self.runs[who] <= 1 or tool == "again", f"{tool} ran {self.runs[who]} times")

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(f"{trio.current_time():.3f}: {what}")

    # ---- the invariants --------------------------------------------------------------------------

    def after_io_wait(self, timeout: float) -> None:
        if self.pool is None:
            return
        stats = self.pool._scheduler.ledger.totals()
        ended = stats.completed + stats.failed + stats.cancelled + stats.timed_out
        if stats.accepted != ended + stats.in_flight + stats.queued:
            self.wrong.append(f"the books don't agree: {stats}")
        for seats in self.pool._scheduler.ledger.seats:
            held = [*seats.running.values(), *seats.leaving.values(), *seats.ahead.values()]
            groups = [id(request.beside) for request in held if request.beside is not None]
            if len(groups) != len(set(groups)):
                self.wrong.append(f"two hedged calls in one worker: {held}")
            self.seen["hedged"] += any(request.beside is not None and len(request.beside) > 1 for request in held)
        for limit in self.pool._guard._limits if self.pool._guard is not None else ():
            for gate in limit._gates.values():
                self.seen["waits for a permit"] += bool(gate.queue)
                self.seen["waits for a token"] += bool(len(gate.line))
                self.seen["outlives its caller"] += len(gate.holders) > gate.inside

    async def main(self) -> None:
        self.pool: Any = None
        async with self.world.open_pool(**self.options) as pool:
            self.pool = pool
            trio.lowlevel.add_instrument(self)
            submit = pool._scheduler.submit

            def noted(request: Request, now: float) -> None:
                self.begins.append((now, request.tool, request.session))
                submit(request, now)

            pool._scheduler.submit = noted  # type: ignore[method-assign]
            closing = self.rng.random() < 0.3
            async with trio.open_nursery() as callers:
                with trio.fail_after(600):
                    async with trio.open_nursery() as nursery:
                        await nursery.start(self.hold_session, pool, callers if closing else nursery)
                        for who in range(40):
                            (callers if closing else nursery).start_soon(self.call, pool, None, who)
                        if closing:
                            nursery.start_soon(trio.sleep, self.rng.uniform(0.5, 2.0))
                if closing:
                    self.closed_at = trio.current_time()
                    self.seen["closed"] += 1
                    await pool.aclose(drain=True)
            if not closing:
                while any(seats.load or seats.ahead for seats in pool._scheduler.ledger.seats):
                    await trio.sleep(0.1)
            self.at_rest(pool)
            trio.lowlevel.remove_instrument(self)
        for config in self.limits:
            self.check_limit(config)
        assert not self.wrong, self.wrong[:5]

    async def hold_session(self, pool: sp.Pool, nursery: trio.Nursery, task_status: Any) -> None:
        """A session that is used, and ends at some time, perhaps before those who use it."""
        async with pool.session(
            "s", affinity=self.rng.choice(["hint", "strict_queue"]), on_lost="rebind", ttl=0.3
        ) as session:
            for who in range(100, 120):
                nursery.start_soon(self.call, pool, session, who)
            task_status.started()
            await trio.sleep(self.rng.choice([1.0, 2.5]))
            self.ended_at = trio.current_time()

    def at_rest(self, pool: sp.Pool) -> None:
        """Whatever was held has come back."""
        self.check(not len(pool.calls.paused), "somebody waits")
        self.seen[self.focus] += 1
        self.check(not len(pool._services.waits), "somebody waits for others")
        guard = pool._guard
        if guard is None:
            return
        for limit in guard._limits:
            for gate in limit._gates.values():
                left = (gate.inside, gate.waiting, len(gate.holders), len(gate.queue), len(gate.line))
                self.check(
                    not any(left) and (gate.bucket is None or not gate.bucket.reserved), f"left at a limit: {left}"
                )
        for circuit in guard._circuits.values():
            self.check(not circuit._probing, "a probe was lost")

    def check_limit(self, config: sp.LimitConfig) -> None:
        def key(tool: str, session: str | None) -> str | None:
            if config.tools and tool not in config.tools:
                return None
            return {"tool": tool, "session": session, "pool": ""}[config.per]

        if config.concurrency is not None:
            now: Counter[str] = Counter()
            # What ends at the same moment ends first.
            for at, change, tool, session in sorted(self.marks, key=lambda mark: mark[:2]):
                its = key(tool, session)
                if its is not None:
                    now[its] += change
                    self.check(now[its] <= config.concurrency, f"{now[its]} at once at {at:.3f} under {config}")
        if config.rate is not None:
            keys = {key(tool, session) for _, tool, session in self.begins} - {None}
            for its in keys:
                at = [now for now, tool, session in self.begins if key(tool, session) == its]
                self.check_rate(at, config)

    def check_rate(self, at: list[float], config: sp.LimitConfig) -> None:
        assert config.rate is not None
        burst = max(1, int(config.rate)) if config.burst is None else config.burst
        for first in range(len(at)):
            for last in range(first + burst, len(at)):
                most = burst + config.rate * (at[last] - at[first])
                self.check(
                    last - first + 1 <= most + 1e-3,
                    f"{last - first + 1} in {at[last] - at[first]:.3f} s under {config}",
                )
        if self.focus == "tokens":
            # Nobody waits while there is a token: each call begins at the moment at which it came, or at which one came for it.
            full_at = -math.inf
            for now in at:
                due = full_at + (1 - burst) / config.rate
                came = any(abs(now - arrival) < 1e-3 for arrival in self.arrivals)
                self.check(abs(now - due) < 1e-3 or came, f"began at {now:.3f}, and could at {due:.3f} under {config}")
                self.seen["waited for a token"] += not came
                full_at = max(full_at, now) + 1 / config.rate


def run(walk: Walk, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trio shuffles its tasks: here by the seed, so that a walk can be gone again.
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(trio._core._run, "_r", random.Random(seed))
    try:
        trio.run(walk.main, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True)
    except BaseException as exc:
        exc.add_note(f"seed {seed}: {walk.options}")
        raise


#: What the walks have to have seen: walks that meet nothing show nothing.
OUTCOMES = {
    *(
        "completed",
        "cancelled",
        "ToolError",
        "RequestTimeout",
        "RequestCancelled",
        "QueueFull",
        "QuotaExceeded",
        "PoolClosed",
    ),
    *(
        "SessionNotFound",
        "SessionWorkerUnavailable",
        "WorkerCrashed",
        "CircuitOpen",
        "waits for a permit",
        "waits for a token",
    ),
    *("waited for a token", "hedged", "outlives its caller", "closed", "retried"),
    *("permits", "tokens", "crossed", "hedges", "lines", "circuit", "all"),
}


@pytest.mark.parametrize("block", range(0, SEEDS, BLOCK))
def test_no_walk_passes_a_limit_or_is_forgotten(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    for seed in range(block, block + BLOCK):
        run(Walk(seed, seen), seed, monkeypatch)
    assert {what for what in OUTCOMES if seen[what]} == OUTCOMES
