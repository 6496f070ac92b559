"""Sessions on two hosts over one store of each kind: a handle is of one session, whoever has its id by now.

A seed draws the clocks of two hosts, and a walk: blocks are opened, used, left and closed on both, ids are ended and made anew,
time passes, and each host sweeps by its own clock. The model is told by the store what was made and what was ended, and holds
the values of each *incarnation* of an id. Whatever the clocks say: a handle meets the values of its own incarnation, or
SessionNotFound; nothing that is done with it ends, changes or prolongs another.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
import trio

import snakepit_trio as sp
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.observe.events import EventBus
from snakepit_trio.pool.calls.session import open_session
from snakepit_trio.sessions.directory import SessionDirectory
from snakepit_trio.sessions.programs import ProgramStore
from snakepit_trio.sessions.records import Limits
from snakepit_trio.sessions.sql import SqlTables
from snakepit_trio.sessions.store import Store, Tables
from tests.redis_server import redis_server

IDS = ["s", "S", "\u20ac"]
KEYS = ["k", "l"]
#: Nothing of a pool is in these walks but its name.
POOL: Any = SimpleNamespace(name="pool", calls=SimpleNamespace(errors=InternalErrors()))
TTLS = [None, 2.0, 8.0, 60.0]
#: A host hears of what another has ended within so many seconds.
_HEARD = 5.0


class Incarnation:
    """One session: what it holds, and its last use, on the clock of whoever used it; what the store and what each host knows."""

    def __init__(self, id: str, ttl: float) -> None:
        self.id = id
        self.ttl = ttl
        self.told = -math.inf
        self.uses: dict[Host, float] = {}
        self.ended_at: float | None = None
        self.items: dict[str, tuple[int, int]] = {}
        self.writes = 0
        self.programs: dict[str, bytes] = {}

    def use(self, host: Host, *, told: bool) -> None:
        self.uses[host] = max(self.uses.get(host, -math.inf), host.now)
        if told:
            self.told = max(self.told, host.now)

    def may_be_over(self, host: Host) -> bool:
        """Whether its time is spent as far as a host can know."""
        return max(self.told, self.uses.get(host, -math.inf)) + self.ttl <= host.now

    def is_over(self, host: Host) -> bool:
        """Whether its time is spent, whoever has used it."""
        return max(self.told, *self.uses.values()) + self.ttl <= host.now


class Handle:
    """A block that has a session open on one host."""

    def __init__(self, host: Host, block: Any, session: sp.Session, of: Incarnation, detach: bool) -> None:
        self.host = host
        self.block = block
        self.session = session
        self.of = of
        self.detach = detach
        self.calls: list[object] = []
        self.ends = 0
        self.over = False

    def end(self) -> None:
        self.ends += 1


class Host:
    """One runtime's sessions, on a clock of its own."""

    def __init__(self, walk: Walk, tables: Tables, ahead: float) -> None:
        self.walk = walk
        self.ahead = ahead
        heard: Any = Heard(self, tables)
        store = Store(heard, clock=lambda: self.now, blocking=False, shared=True, failures=())
        self.sessions = SessionDirectory(store, EventBus())
        self.programs = ProgramStore(store, self.sessions, None, EventBus())

    @property
    def now(self) -> float:
        return self.walk.now + self.ahead


class Heard:
    """A host's way to the store, on which the walk hears what is made and what is ended: that is certain, and checked elsewhere."""

    def __init__(self, host: Host, tables: Tables) -> None:
        self._host = host
        self._tables = tables

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    def open(self, id: str, *rest: Any, **options: Any) -> Any:
        answer = self._tables.open(id, *rest, **options)
        if answer[0]:
            self._over(id, "expired")
            self._host.walk.current[id] = Incarnation(id, math.inf if answer[1] is None else answer[1])
        return answer

    def remove(self, id: str, *rest: Any, **options: Any) -> bool:
        found = self._tables.remove(id, *rest, **options)
        if found:
            self._over(id, "closed")
        return found

    def expire(self, ids: list[str], now: float) -> list[str]:
        gone = self._tables.expire(ids, now)
        for id in gone:
            self._over(id, "expired")
        return gone

    def _over(self, id: str, how: str) -> None:
        walk = self._host.walk
        found = walk.current.pop(id, None)
        if found is not None:
            assert how != "expired" or found.may_be_over(self._host), "ended before its time"
            found.ended_at = walk.now
            walk.seen[f"a session: {how}"] += 1


class Walk:
    """A seeded walk over two hosts."""

    def __init__(self, seed: int, tables: tuple[Tables, Tables]) -> None:
        rng = self.rng = random.Random(seed)
        self.now = 1.7e9
        self.seen: Counter[str] = Counter()
        self.current: dict[str, Incarnation] = {}
        self.handles: list[Handle] = []
        self.numbers = itertools.count(1)
        aheads = [0.0, rng.choice([0.0, 0.0, 0.3, 3.0, -3.0, 100.0])]
        self.hosts = [Host(self, tables, ahead) for tables, ahead in zip(tables, aheads, strict=True)]

    # ---- what is done ------------------------------------------------------------------------------

    async def step(self) -> None:
        kinds, weights = zip(*_STEPS.items(), strict=True)
        kind = self.rng.choices(kinds, weights)[0]
        if self.handles or kind in _WITHOUT_HANDLES:
            await getattr(self, kind)()
        self.check()

    def check(self) -> None:
        for host in self.hosts:
            for known in host.sessions._known.values():
                assert known.ended is None
        for handle in self.handles:
            if handle.session._known.ended is not None:
                assert handle.ends == len(handle.calls), "a call of a session that has ended goes on"
                alive = self.current.get(handle.of.id) is handle.of
                # When it ended: another host, by whose clock it was not over, may have used it since.
                assert handle.over or not alive or handle.of.may_be_over(handle.host), "ended here, and alive"
                handle.over = True
            else:
                assert not handle.ends
                self.used_by_calls(handle)

    def used_by_calls(self, handle: Handle) -> None:
        if handle.calls:
            handle.of.use(handle.host, told=False)

    def pick(self) -> Handle:
        """A handle; often one whose session is over, and its host has not heard of it, or whose id is another's by now."""
        over = [handle for handle in self.handles if self.current.get(handle.of.id) is not handle.of]
        unheard = [handle for handle in over if handle.session._known.ended is None]
        others = [handle for handle in over if handle.of.id in self.current]
        return self.rng.choice(self.rng.choice([unheard, others, self.handles]) or self.handles)

    async def time_passes(self) -> None:
        self.now += self.rng.choice([0.01, 0.3, 1.0, 2.5, 6.0])
        for handle in self.handles:
            if handle.session._known.ended is None:
                self.used_by_calls(handle)

    async def sweep(self) -> None:
        host = self.rng.choice(self.hosts)
        ended = sum(handle.session._known.ended is not None for handle in self.handles)
        await host.sessions.sweep()
        now = sum(handle.session._known.ended is not None for handle in self.handles)
        self.seen["sweep: ends something" if now > ended else "sweep: ends nothing"] += 1

    async def open(self) -> None:
        host, id, ttl = self.rng.choice(self.hosts), self.rng.choice(IDS), self.rng.choice(TTLS)
        before = self.current.get(id)
        runs = any(
            handle.calls and not handle.ends for handle in self.handles if handle.host is host and handle.of is before
        )
        detach = self.rng.random() < 0.6
        block = open_session(
            POOL, host.sessions, id, affinity="hint", ttl=ttl, metadata={}, on_lost="error", detach=detach
        )
        session = await block.__aenter__()
        of = self.current[id]
        assert of is before or not runs, "made anew though a call of it runs here"
        if of is before:
            assert not of.is_over(host), "resumed though its time was spent"
        of.use(host, told=True)
        assert session.ttl == (None if of.ttl == math.inf else of.ttl)
        self.seen["open: resumed" if of is before else "open: made"] += 1
        self.handles.append(Handle(host, block, session, of, detach))

    async def leave(self) -> None:
        handle = self.pick()
        of = handle.of
        current = self.current.get(of.id)
        for call in handle.calls:
            handle.session.finish(call)
        self.used_by_calls(handle)
        handle.calls, handle.ends = [], 0
        self.handles.remove(handle)
        await handle.block.__aexit__(None, None, None)
        after = self.current.get(of.id)
        if current is not of:
            assert after is current, "leaving a session that was over ended another"
            self.seen["leave: of one that is over"] += 1
        else:
            self.seen["leave: stays" if after is of else "leave: ends it"] += 1
            assert after is of or not handle.detach

    async def close(self) -> None:
        handle = self.pick()
        of, current = handle.of, self.current.get(handle.of.id)
        await handle.session.close()
        after = self.current.get(of.id)
        if current is of:
            assert after is None or (handle.session._known.ended is not None and of.may_be_over(handle.host))
            self.seen["close: ends it"] += 1
        else:
            assert after is current, "closing a session that was over ended another"
            self.seen["close: of one that is over"] += 1
        assert handle.session._known.ended is not None

    async def close_by_id(self) -> None:
        host, id = self.rng.choice(self.hosts), self.rng.choice(IDS)
        was = self.current.get(id)
        found = await host.sessions.close(id)
        assert found == (was is not None)
        assert id not in self.current
        self.seen["close by id: found" if found else "close by id: nothing"] += 1

    async def look(self) -> None:
        host, id = self.rng.choice(self.hosts), self.rng.choice(IDS)
        of = self.current.get(id)
        try:
            info = await host.sessions.get(id)
        except sp.SessionNotFound:
            assert of is None or of.may_be_over(host)
            self.seen["look: nothing"] += 1
        else:
            assert of is not None and self.current.get(id) is of
            assert (info.ttl, info.entries) == (None if of.ttl == math.inf else of.ttl, len(of.items))
            self.seen["look: found"] += 1
        for found in await host.sessions.list():
            assert found.id in self.current
            assert found.entries == len(self.current[found.id].items)

    # ---- its values --------------------------------------------------------------------------------

    async def ask(self, what: str, handle: Handle, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether a handle's session is there; if so, what the call gave."""
        of, host = handle.of, handle.host
        lives = self.current.get(of.id) is of
        try:
            value = await call()
        except sp.SessionNotFound:
            assert not lives or handle.over or of.may_be_over(host), f"{what}: not found, and alive"
            if self.current.get(of.id) not in (None, of):
                self.seen[f"{what}: another has its id"] += 1
            else:
                self.seen[f"{what}: no session"] += 1
            return False, None
        assert lives, f"{what}: another session's, or none's: {value!r}"
        if what != "info":
            of.use(host, told=True)
        return True, value

    async def get(self) -> None:
        handle, key = self.pick(), self.rng.choice(KEYS)
        there, found = await self.ask("get", handle, lambda: handle.session.get_versioned(key))
        if there:
            assert found == handle.of.items.get(key, (None, 0)), "not its own value"
            self.seen["get: found" if found[1] else "get: nothing"] += 1

    async def put(self) -> None:
        handle, key, value = self.pick(), self.rng.choice(KEYS), next(self.numbers)
        of = handle.of
        version = of.items.get(key, (None, 0))[1]
        expect = self.rng.choice([None, version, version, 7])
        there, made = await self.ask("put", handle, lambda: handle.session.put(key, value, expect=expect))
        if there:
            if expect in (None, version):
                of.writes += 1
                assert made == of.writes, "not its own version"
                of.items[key] = value, made
                self.seen["put: stored"] += 1
            else:
                assert made is None
                self.seen["put: not stored"] += 1

    async def delete(self) -> None:
        handle, key = self.pick(), self.rng.choice(KEYS)
        there, found = await self.ask("delete", handle, lambda: handle.session.delete(key))
        if there:
            assert found == (handle.of.items.pop(key, None) is not None)
            self.seen["delete: found" if found else "delete: nothing"] += 1

    async def keys(self) -> None:
        handle = self.pick()
        there, found = await self.ask("keys", handle, lambda: handle.session.keys())
        if there:
            assert found == tuple(sorted(handle.of.items))

    async def info(self) -> None:
        handle = self.pick()
        there, found = await self.ask("info", handle, lambda: handle.session.info())
        if there:
            assert found.entries == len(handle.of.items)

    # ---- its calls ---------------------------------------------------------------------------------

    async def call(self) -> None:
        handle, call = self.pick(), object()
        of, host, known = handle.of, handle.host, handle.session._known
        lives = self.current.get(of.id) is of
        try:
            await host.sessions.use(known)
            handle.session.begin(call, handle.end)
        except sp.SessionNotFound:
            assert not lives or handle.over or of.may_be_over(host), "call: not found, and alive"
            self.seen["call: no session"] += 1
            return
        if lives:
            of.use(host, told=False)
            self.seen["call: begun"] += 1
        else:
            assert of.ended_at is not None and self.now - of.ended_at <= _HEARD, "a call of a session that is over"
            self.seen["call: of one that has just ended elsewhere"] += 1
        handle.calls.append(call)

    async def finish(self) -> None:
        for handle in self.handles:
            for call in handle.calls:
                handle.session.finish(call)
                self.used_by_calls(handle)
            handle.calls, handle.ends = [], 0
        self.seen["finish"] += 1

    # ---- its programs ------------------------------------------------------------------------------

    async def program(self) -> None:
        """By its id: a program belongs to whichever session has it."""
        host, id, name = self.rng.choice(self.hosts), self.rng.choice(IDS), self.rng.choice(KEYS)
        of, data = self.current.get(id), b"%d" % next(self.numbers)
        try:
            await host.programs.put(name, data, session=id)
        except sp.SessionNotFound:
            assert of is None or of.may_be_over(host)
            self.seen["program: no session"] += 1
        else:
            assert of is not None
            of.use(host, told=True)
            of.programs[name] = data
            self.seen["program: stored"] += 1
        found = {info.name for info in await host.programs.list(session=id)}
        assert found == (set(of.programs) if of is not None and not of.may_be_over(host) else set())


_STEPS = {
    "time_passes": 5, "sweep": 3, "open": 5, "leave": 2, "close": 1, "close_by_id": 2, "look": 2, "get": 6, "put": 7, "delete": 3,
    "keys": 2, "info": 2, "call": 6, "finish": 2, "program": 2,
}  # fmt: skip
_WITHOUT_HANDLES = {"time_passes", "sweep", "open", "close_by_id", "look", "program", "finish"}
#: What the walks have to come to, so that they show something.
_MET = (
    "open: made", "open: resumed", "leave: stays", "leave: ends it", "leave: of one that is over", "close: ends it",
    "close: of one that is over", "close by id: found", "close by id: nothing", "look: found", "look: nothing",
    "a session: closed", "a session: expired", "sweep: ends something", "sweep: ends nothing",
    "get: found", "get: nothing", "get: no session", "get: another has its id", "put: stored", "put: not stored", "put: no session",
    "put: another has its id", "delete: found", "delete: nothing", "delete: another has its id", "keys: another has its id",
    "info: another has its id", "call: begun", "call: no session", "call: of one that has just ended elsewhere", "finish",
    "program: stored", "program: no session",
)  # fmt: skip


def check(walks: int, make: Callable[[], contextlib.AbstractContextManager[tuple[Tables, Tables]]]) -> None:
    seen: Counter[str] = Counter()

    async def one(seed: int) -> None:
        with make() as tables:
            walk = Walk(seed, tables)
            try:
                for _ in range(150):
                    await walk.step()
                while walk.handles:
                    await walk.leave()
            except AssertionError as exc:
                exc.add_note(f"seed {seed}")
                raise
            seen.update(walk.seen)

    for seed in range(walks * (20 if hypothesis.settings().max_examples > 1000 else 1)):
        trio.run(one, seed)
    assert all(seen[outcome] >= 3 for outcome in _MET), {
        outcome: seen[outcome] for outcome in _MET if seen[outcome] < 3
    }


@contextlib.contextmanager
def memory() -> Iterator[tuple[Tables, Tables]]:
    """One process may have two directories over one of it; nobody else can."""
    with contextlib.closing(SqlTables(":memory:", Limits())) as tables:
        yield tables, tables


def test_memory() -> None:
    check(40, memory)


def test_sqlite(tmp_path: Path) -> None:
    numbers = itertools.count()

    @contextlib.contextmanager
    def make() -> Iterator[tuple[Tables, Tables]]:
        path = str(tmp_path / f"{next(numbers)}.db")
        with contextlib.closing(SqlTables(path, Limits())) as one, contextlib.closing(SqlTables(path, Limits())) as two:
            yield one, two

    check(25, make)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


def test_redis(redis_url: str) -> None:
    from snakepit_trio.sessions.redis_tables import RedisTables

    with (
        contextlib.closing(RedisTables(redis_url, Limits())) as one,
        contextlib.closing(RedisTables(redis_url, Limits())) as two,
    ):

        @contextlib.contextmanager
        def make() -> Iterator[tuple[Tables, Tables]]:
            one._redis.flushall()
            yield one, two

        check(25, make)
