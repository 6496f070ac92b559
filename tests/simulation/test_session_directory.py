"""The directory of sessions on a mock clock: expiry to the moment, and a cancellation at each step of each operation."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.observe.events import EventBus
from snakepit_trio.pool.calls.session import open_session
from snakepit_trio.sessions.directory import SessionDirectory
from snakepit_trio.sessions.programs import ProgramStore
from snakepit_trio.sessions.records import Limits
from snakepit_trio.sessions.sql import SqlTables
from snakepit_trio.sessions.store import Store, open_store


class ThreadLike(Store):
    """Answers as one in a thread does: after a while, and whatever has happened to the asking task meanwhile.

    Attributes:
        asked: How often it was.
        cancel_at: The question during which ``scope`` is cancelled.
        cancel_before: The question before which it is, when the asking task is on its way.
    """

    def __init__(self, shared: bool = False, clock: Callable[[], float] = anyio.current_time) -> None:
        tables = SqlTables(":memory:", Limits(max_sessions=3))
        super().__init__(tables, clock=clock, blocking=False, shared=shared, failures=())
        self.asked = 0
        self.cancel_at = self.cancel_before = -1
        self.scope = anyio.CancelScope()

    async def ask(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self.asked + 1 == self.cancel_before:
            self.cancel_before = -1
            self.scope.cancel()
        await anyio.lowlevel.checkpoint()
        with anyio.CancelScope(shield=True):
            self.asked += 1
            if self.asked == self.cancel_at:
                self.scope.cancel()
            await anyio.sleep(0.001)
            result = method(*arguments, **options)
            await anyio.sleep(0.001)
        return result


def run(main: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    trio.run(main, *arguments, clock=trio.testing.MockClock(autojump_threshold=0))


@asynccontextmanager
async def kept(store: Store) -> AsyncIterator[SessionDirectory]:
    async with anyio.create_task_group() as nursery:
        sessions = SessionDirectory(store, EventBus())
        nursery.start_soon(sessions.keep)
        yield sessions
        nursery.cancel_scope.cancel()


def session(sessions: SessionDirectory, id: str, **options: Any) -> Any:
    given = {"affinity": "hint", "ttl": None, "metadata": {}, "on_lost": "error", "detach": False, **options}
    pool: Any = SimpleNamespace(name="pool", calls=SimpleNamespace(errors=InternalErrors()))
    return open_session(pool, sessions, id, **given)


def test_each_use_gives_it_its_whole_time() -> None:
    async def main() -> None:
        store = ThreadLike()
        async with kept(store) as sessions:
            known = await sessions.open("a", 10.0, {})
            for _ in range(5):
                await trio.sleep(7)
                await sessions.use(known)
            await trio.sleep(11)
            with pytest.raises(sp.SessionNotFound):
                await sessions.use(known)
        store.tables.close()

    run(main)


def test_the_store_hears_of_each_use_once() -> None:
    async def main() -> None:
        store = ThreadLike()
        async with kept(store) as sessions:
            known = await sessions.open("a", 10.0, {})
            await sessions.tell_of("a")
            await trio.sleep(0.01)
            await sessions.use(known)
            asked = store.asked
            await sessions.tell_of("a")
            assert store.asked == asked + 1
            # It has been told; of what is not known here there is nothing to tell.
            for id in ("a", "none"):
                await sessions.tell_of(id)
            assert store.asked == asked + 1
        store.tables.close()

    run(main)


def test_expiry_is_to_the_moment_and_needs_no_traffic() -> None:
    async def main() -> None:
        async with open_store("memory", Limits()) as store, kept(store) as sessions:
            programs = ProgramStore(store, sessions, None, EventBus())
            async with session(sessions, "s", ttl=10.0) as opened:
                await programs.put("p", b"x", ttl=3.0)
                await anyio.sleep(2.99)
                assert await programs.get("p") == b"x"
                await anyio.sleep(0.02)
                # Gone from the books, not only from sight.
                assert store.tables.next_expiry() == 10.0
                await anyio.sleep(6.98)
                await opened.put("k", 1)
                await anyio.sleep(9.98)
                assert opened._known.ended is None
                assert (await sessions.get("s")).expires_in == pytest.approx(0.02)
                await anyio.sleep(0.03)
                assert isinstance(opened._known.ended, sp.SessionNotFound)
                assert store.tables.next_expiry() == math.inf
                with pytest.raises(sp.SessionNotFound):
                    await opened.get("k")

    run(main)


@pytest.mark.parametrize("shared", [False, True])
def test_a_call_keeps_it_alive_and_the_store_hears_of_it(shared: bool) -> None:
    async def main() -> None:
        store = ThreadLike(shared)
        async with kept(store) as sessions:
            async with session(sessions, "s", ttl=1.0) as opened:
                ended: list[object] = []
                known = opened._known
                sessions.begin(known, "call", lambda: ended.append(1))
                await anyio.sleep(7.3)
                assert (await sessions.get("s")).expires_in is not None
                assert [info.id for info in await sessions.list()] == ["s"]
                sessions.finish(known, "call")
                await anyio.sleep(0.9)
                assert known.ended is None
                assert not ended
                await anyio.sleep(0.2)
                assert known.ended is not None
        store.tables.close()

    run(main)


@pytest.mark.parametrize("ttl", [0.5, 1.0, 4.0, 20.0])
def test_a_use_keeps_it_alive_against_another_host(ttl: float) -> None:
    """Another host ends what has expired as far as the store knows, to the moment."""

    async def main(before: float, lasts: float) -> None:
        store = ThreadLike(shared=True)
        async with kept(store) as sessions, kept(store), session(sessions, "s", ttl=ttl) as opened:
            await anyio.sleep(before * ttl)
            await sessions.use(opened._known)
            opened.begin("call", lambda: None)
            await anyio.sleep(lasts * ttl)
            assert opened._known.ended is None
            opened.finish("call")
            await anyio.sleep(0.8 * ttl)
            await opened.put("k", 1)
            await anyio.sleep(1.5 * ttl)
            with pytest.raises(sp.SessionNotFound):
                await opened.get("k")
        store.tables.close()

    for before in (0.0, 0.01, 0.2, 0.5, 0.7, 0.9):
        for lasts in (0.0, 0.3, 3.0):
            run(main, before, lasts)


def test_what_another_process_does_to_a_shared_store() -> None:
    async def main() -> None:
        store = ThreadLike(shared=True)
        async with kept(store) as sessions:
            async with session(sessions, "closed") as closed, session(sessions, "used", ttl=4.0) as used:
                async with session(sessions, "left", detach=True):
                    pass
                store.tables.remove("closed")
                store.tables.remove("left")
                await anyio.sleep(3.0)
                store.tables.keep([("used", used._known.generation, anyio.current_time())])
                await anyio.sleep(3.0)
                # It was used elsewhere, so it is alive here.
                assert await used.get("k") is None
                with pytest.raises(sp.SessionNotFound):
                    await closed.get("k")
                await anyio.sleep(12.0)
                # Nothing is kept here of what is nowhere.
                assert not sessions._known
                assert not sessions._untold
        store.tables.close()

    run(main)


def test_a_full_store_makes_room_by_what_has_expired() -> None:
    async def main() -> None:
        store = ThreadLike()
        sessions = SessionDirectory(store, EventBus())
        for number in range(3):
            async with session(sessions, f"s{number}", ttl=1.0, detach=True):
                pass
        with pytest.raises(sp.QuotaExceeded):
            async with session(sessions, "more"):
                pass
        await anyio.sleep(1.1)
        # Nobody sweeps here.
        async with session(sessions, "more"):
            assert len(await sessions.list()) == 1
        store.tables.close()

    run(main)


def test_a_cancellation_at_each_step_leaves_nothing_behind() -> None:
    async def main(cancel_at: int, cancel_before: int, reached: list[int]) -> None:
        store = ThreadLike()
        sessions = SessionDirectory(store, EventBus())
        store.cancel_at, store.cancel_before = cancel_at, cancel_before
        with store.scope:
            async with session(sessions, "s") as opened:
                await opened.put("k", 1)
                await opened.update("k", lambda k: k + 1)
                await opened.info()
                await opened.close()
            async with session(sessions, "t", ttl=5.0):
                pass
        reached.append(store.asked)
        assert store.tables.sessions(anyio.current_time()) == []
        assert not sessions._known
        assert not sessions._untold
        assert not sessions._lock.locked()
        # It goes on as if nothing had been.
        async with session(sessions, "s") as again:
            assert await again.get("k") is None
        store.tables.close()

    reached: list[int] = []
    run(main, -1, -1, reached)
    for step in range(1, reached[0] + 1):
        run(main, step, -1, reached)
        run(main, -1, step, reached)
    assert reached[0] > 7


def test_a_close_that_waits_behind_a_store_that_hangs_can_be_cancelled() -> None:
    async def main() -> None:
        store = ThreadLike()
        sessions = SessionDirectory(store, EventBus())
        known = await sessions.open("s", None, {})
        async with sessions._lock:  # As whoever else waits for the store has it.
            with anyio.move_on_after(1.0) as scope:
                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(sessions.close, "s")
            assert scope.cancelled_caught
            assert anyio.current_time() == pytest.approx(1.0, abs=0.1)
        assert known.ended is None
        assert await sessions.close("s")
        assert known.ended is not None
        store.tables.close()

    run(main)


def test_open_close_and_leave_in_any_order_never_leave_a_handle_on_nothing() -> None:
    """Tasks open, close and leave one id; whoever holds a handle that is not ended finds its session in the store."""

    async def main(seed: int) -> None:
        import random

        rng = random.Random(seed)
        store = ThreadLike()
        sessions = SessionDirectory(store, EventBus())

        async def user() -> None:
            for _ in range(6):
                await anyio.sleep(rng.uniform(0, 0.01))
                detach = rng.random() < 0.4
                with anyio.move_on_after(rng.choice([0.003, 0.006, 1.0])):
                    async with session(sessions, "s", detach=detach, ttl=rng.choice([None, 0.01])) as opened:
                        rows = store.tables._db.execute("SELECT count(*) FROM sessions").fetchone()[0]
                        assert rows == 1 or opened._known.ended is not None
                        await anyio.sleep(rng.uniform(0, 0.01))
                        try:
                            await opened.put("k", 1)
                        except sp.SessionNotFound:
                            assert opened._known.ended is not None
                        if rng.random() < 0.3:
                            await opened.close()

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(sessions.keep)
            async with anyio.create_task_group() as users:
                for _ in range(4):
                    users.start_soon(user)
            await anyio.sleep(1)
            nursery.cancel_scope.cancel()
        left = {info.id for info in store.tables.sessions(anyio.current_time())}
        assert set(sessions._known) == left
        assert all(known.handles == 0 for known in sessions._known.values())
        store.tables.close()

    for seed in range(40):
        run(main, seed)


@pytest.mark.parametrize("shared", [False, True])
def test_a_row_that_is_always_due_costs_no_more_than_a_look_now_and_then(shared: bool) -> None:
    """What stands in a store may make no sense, and then it never goes."""

    async def main() -> None:
        store = ThreadLike(shared)
        tables = store.tables
        due, next_expiry = tables.due, tables.next_expiry
        tables.due = lambda now, most: ["nobody", *due(now, most)]  # type: ignore[method-assign]
        tables.next_expiry = lambda: min(0.5, next_expiry())  # type: ignore[method-assign]
        async with kept(store) as sessions, session(sessions, "a", ttl=20.0, detach=True):
            pass
        async with kept(store) as sessions:
            before = store.asked
            await anyio.sleep(60.0)
            assert store.asked - before < 100
            # The others end all the same.
            assert await sessions.list() == ()

    run(main)


def test_what_is_told_of_sessions_and_programs() -> None:
    """Once, and only of what there was."""

    async def main() -> None:
        store, bus = ThreadLike(), EventBus(100)
        async with anyio.create_task_group() as nursery:
            sessions = SessionDirectory(store, bus)
            nursery.start_soon(sessions.keep)
            programs = ProgramStore(store, sessions, 60.0, bus)
            await sessions.open("a", 5.0, {})
            await sessions.open("b", 5.0, {})
            assert [await sessions.close("a"), await sessions.close("a")] == [True, False]
            await programs.put("p", b"data")
            assert [await programs.delete(name) for name in ("q", "p", "p")] == [False, True, False]
            await anyio.sleep(6)
            nursery.cancel_scope.cancel()
        told = [(event.name, event.metadata.get("session_id", event.metadata.get("program"))) for event in bus.history]
        assert told == [
            ("session.opened", "a"), ("session.opened", "b"), ("session.closed", "a"), ("program.stored", "p"),
            ("program.deleted", "p"), ("session.expired", "b"),
        ]  # fmt: skip

    run(main)
