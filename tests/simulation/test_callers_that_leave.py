"""A caller that leaves while something fails that nobody expected: what it had under way ends all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio._map_results import MapResults
from snakepit_trio.pool.calls import session as session_module
from snakepit_trio.pool.calls.affinity import Ties
from snakepit_trio.pool.calls.session import Session
from snakepit_trio.pool.calls.stream import ChunkStream
from snakepit_trio.pool.scheduling.ledger import Ledger
from snakepit_trio.pool.scheduling.scheduler import Scheduler
from snakepit_trio.sessions.directory import SessionDirectory
from snakepit_trio.testing import ScriptedWorkers

#: Longer than a simulation looks.
LONG = 1e6


async def nap() -> None:
    await trio.sleep(LONG)


async def count() -> AsyncIterator[int]:
    for number in range(10_000):
        yield number


async def stream(pool: sp.Pool) -> None:
    async with pool.stream("count", timeout=None) as chunks:
        async for _ in chunks:
            break


async def stream_of_a_session(pool: sp.Pool) -> None:
    async with pool.session("s", detach=True) as session, session.stream("count", timeout=None) as chunks:
        async for _ in chunks:
            break


async def call(pool: sp.Pool) -> None:
    with trio.move_on_after(1):
        await pool.execute("nap", timeout=None)


async def call_of_a_session(pool: sp.Pool) -> None:
    async with pool.session("s", detach=True) as session:
        with trio.move_on_after(1):
            await session.execute("nap", timeout=None)


async def mapped(pool: sp.Pool) -> None:
    with trio.move_on_after(1):
        async with pool.map("nap", ({} for _ in range(10)), timeout=None) as results:
            async for _ in results:
                pass


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize(
    ("body", "kind", "name"),
    [
        *[
            (body, kind, name)
            for body in (stream, stream_of_a_session)
            for kind, name in [
                (ChunkStream, "leave"),
                (Scheduler, "cancel"),
                (Ledger, "put_out"),
                (Ledger, "leave"),
            ]
        ],
        *[(body, SessionDirectory, "finish") for body in (stream_of_a_session, call_of_a_session)],
        *[(body, Session, "finish") for body in (stream_of_a_session, call_of_a_session)],
        *[
            (body, kind, name)
            for body in (call, call_of_a_session, mapped)
            for kind, name in [(Scheduler, "cancel"), (Ledger, "put_out")]
        ],
        (mapped, MapResults, "close"),
    ],
)
def test_what_a_caller_had_under_way_ends_when_it_leaves(
    body: Callable[[sp.Pool], Awaitable[None]],
    kind: type,
    name: str,
    limited: bool,
    monkeypatch: pytest.MonkeyPatch,
    internal_errors: list[BaseException],
) -> None:
    plain = getattr(kind, name)

    def fail_once(*args: object) -> None:
        monkeypatch.setattr(kind, name, plain)
        raise RuntimeError(name)

    async def main() -> None:
        workers = ScriptedWorkers({"nap": nap, "count": count}, seed=1, crash=0, deaf=0, late=0, start_failure=0)
        options: dict[str, Any] = {"limits": [sp.LimitConfig(concurrency=2)]} if limited else {}
        async with workers, workers.open_pool(size=2, **options) as pool:
            monkeypatch.setattr(kind, name, fail_once)
            with suppress(sp.SnakepitError):
                await body(pool)
            assert f"RuntimeError({name!r})" in repr(internal_errors)
            await trio.sleep(60)
            stats = pool.stats()
            assert (stats.in_flight, stats.busy, stats.queued, stats.restarts) == (0, 0, 0, 0)
            assert not any(known.calls for known in pool.runtime.sessions._known.values())
            # Limits have their permits, too.
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(stream, pool)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *[(Session, name) for name in ("__init__", "_leave")],
        *[(Ties, name) for name in ("join", "leave", "_tie_anew")],
        *[(SessionDirectory, name) for name in ("leave", "end", "_end", "_forget")],
        (session_module, "_left"),
    ],
)
def test_a_session_ends_with_its_block(
    place: Any, name: str, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    plain = getattr(place, name)

    def fail_once(*args: object, **options: object) -> None:
        monkeypatch.setattr(place, name, plain)
        raise RuntimeError(name)

    async def main() -> None:
        async with ScriptedWorkers({"nap": nap}, seed=1) as workers, workers.open_pool() as pool:
            monkeypatch.setattr(place, name, fail_once)
            with pytest.raises(sp.SnakepitError, match="internal"):
                async with pool.session("s", affinity="strict_queue"):
                    pass
            assert f"RuntimeError({name!r})" in repr(internal_errors)
            sessions = pool.runtime.sessions
            assert not await sessions.list() and not sessions._known
            async with pool.session("s", detach=True), pool.session("s", detach=True):
                pass
            assert sessions._known["s"].handles == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
