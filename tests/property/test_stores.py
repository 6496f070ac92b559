"""The stores of sessions and programs, all three against one model; the clock is the test's."""

from __future__ import annotations

import contextlib
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from snakepit_trio.errors import QuotaExceeded, SessionNotFound
from snakepit_trio.sessions.records import Limits, ProgramInfo, SessionInfo
from snakepit_trio.sessions.sql import SqlTables
from snakepit_trio.sessions.store import Tables
from tests.redis_server import redis_server

IDS = st.sampled_from(["a", "b", "c d", "\u20ac'\"{}"])
KEYS = st.sampled_from(["k", "l", "m", "\u00e9"])
DATA = st.binary(max_size=12)
TTLS = st.sampled_from([None, 1.0, 3.5])


class Model:
    """What a store is meant to do, in dictionaries."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.sessions: dict[str, dict[str, Any]] = {}
        self.blobs: dict[tuple[str, str], tuple[bytes, float]] = {}

    def alive(self, id: str, now: float) -> bool:
        found = self.sessions.get(id)
        return found is not None and found["expires"] > now

    def use(self, id: str, at: float) -> None:
        found = self.sessions[id]
        found["used"] = max(found["used"], at)
        found["expires"] = max(found["expires"], at + found["ttl"])

    def touch(self, id: str, now: float) -> None:
        if not self.alive(id, now):
            raise SessionNotFound
        self.use(id, now)

    def check(self, quota: str, used: int, more: int) -> None:
        limit = getattr(self.limits, quota)
        if limit is not None and used + more > limit:
            raise QuotaExceeded(details={"quota": quota, "limit": limit, "used": used, "asked": more})

    def size(self, id: str) -> int:
        return sum(len(key.encode()) + len(data) for key, (data, _) in self.sessions[id]["items"].items())

    # ---- as Tables -----------------------------------------------------------------------------------

    def open(self, id: str, ttl: float | None, metadata: dict[str, str], now: float) -> tuple[bool, float | None]:
        if self.alive(id, now):
            self.use(id, now)
            life = self.sessions[id]["ttl"]
            return False, None if life == math.inf else life
        self.remove(id)
        self.check("max_sessions", len(self.sessions), 1)
        life = math.inf if ttl is None else ttl
        self.sessions[id] = {
            "ttl": life, "metadata": metadata, "created": now, "used": now, "expires": now + life, "items": {}, "writes": 0,
        }  # fmt: skip
        return True, ttl

    def keep(self, uses: list[tuple[str, float]]) -> list[str]:
        for id, at in uses:
            if id in self.sessions:
                self.use(id, at)
        return [id for id, _ in uses if id not in self.sessions]

    def info(self, id: str, now: float) -> SessionInfo | None:
        if not self.alive(id, now):
            return None
        found = self.sessions[id]
        endless = found["ttl"] == math.inf
        return SessionInfo(
            id=id, ttl=None if endless else found["ttl"], metadata=found["metadata"], created_at=found["created"],
            used_at=found["used"], expires_in=None if endless else found["expires"] - now,
            entries=len(found["items"]), size=self.size(id),
        )  # fmt: skip

    def all(self, now: float) -> list[SessionInfo]:
        return [info for id in sorted(self.sessions) if (info := self.info(id, now)) is not None]

    def remove(self, id: str) -> bool:
        for place in [place for place in self.blobs if place[0] == id]:
            del self.blobs[place]
        return self.sessions.pop(id, None) is not None

    def expire(self, ids: list[str], now: float) -> list[str]:
        for place in [place for place, (_, expires) in self.blobs.items() if expires <= now]:
            del self.blobs[place]
        return [id for id in ids if id in self.sessions and not self.alive(id, now) and self.remove(id)]

    def next_expiry(self) -> float:
        times = [found["expires"] for found in self.sessions.values()] + [at for _, at in self.blobs.values()]
        return min(times, default=math.inf)

    def put(self, id: str, key: str, data: bytes, expect: int | None, now: float) -> int | None:
        self.touch(id, now)
        found = self.sessions[id]
        old = found["items"].get(key)
        if expect is not None and expect != (old[1] if old else 0):
            return None
        more = len(data) - len(old[0]) if old else len(data) + len(key.encode())
        self.check("session_max_entries", len(found["items"]), 0 if old else 1)
        if more > 0:
            self.check("session_max_bytes", self.size(id), more)
        found["writes"] += 1
        found["items"][key] = data, found["writes"]
        return int(found["writes"])

    def read(self, id: str, key: str, now: float) -> Any:
        self.touch(id, now)
        return self.sessions[id]["items"].get(key)

    def discard(self, id: str, key: str, now: float) -> bool:
        self.touch(id, now)
        return self.sessions[id]["items"].pop(key, None) is not None

    def keys(self, id: str, now: float) -> list[str]:
        self.touch(id, now)
        return sorted(self.sessions[id]["items"])

    def put_program(self, session: str | None, name: str, data: bytes, ttl: float | None, now: float) -> None:
        if session is not None:
            self.touch(session, now)
        self.check("program_max_bytes", 0, len(data))
        old = self.blobs.get((session or "", name))
        self.check("max_programs", len(self.blobs), 0 if old else 1)
        more = len(data) - (len(old[0]) if old else 0)
        if more > 0:
            self.check("programs_max_bytes", sum(len(blob) for blob, _ in self.blobs.values()), more)
        self.blobs[session or "", name] = data, math.inf if ttl is None else now + ttl

    def program(self, session: str | None, name: str, now: float) -> bytes | None:
        data, expires = self.blobs.get((session or "", name), (None, 0.0))
        return data if expires > now and (session is None or self.alive(session, now)) else None

    def discard_program(self, session: str | None, name: str, now: float) -> bool:
        found = self.program(session, name, now) is not None
        self.blobs.pop((session or "", name), None)
        return found

    def programs(self, session: str | None, now: float) -> list[ProgramInfo]:
        return [
            ProgramInfo(
                name=name, session=session, size=len(data), expires_in=None if expires == math.inf else expires - now
            )
            for (owner, name), (data, expires) in sorted(self.blobs.items())
            if owner == (session or "") and self.program(session, name, now) is not None
        ]


class StoreMachine(RuleBasedStateMachine):
    """Every method gives what the model gives, or refuses as it does; nothing is ever half done."""

    tables: Tables

    def make(self, limits: Limits) -> Tables:
        raise NotImplementedError

    @initialize(
        small=st.booleans(),
        start=st.sampled_from([0.0, 1.7e9]),
    )
    def begin(self, small: bool, start: float) -> None:
        limits = Limits()
        if small:
            limits = Limits(
                max_sessions=2, session_max_entries=2, session_max_bytes=20, max_programs=3, program_max_bytes=10,
                programs_max_bytes=18,
            )  # fmt: skip
        self.now = start
        self.model = Model(limits)
        self.tables = self.make(limits)

    def both(self, name: str, *arguments: Any) -> Any:
        outcomes = []
        for side in (self.model, self.tables):
            try:
                outcomes.append(("gave", getattr(side, name)(*arguments)))
            except SessionNotFound:
                outcomes.append(("no session", None))
            except QuotaExceeded as exc:
                outcomes.append(("quota", exc.details))
        assert outcomes[0] == outcomes[1], name
        return outcomes[0]

    @rule(seconds=st.sampled_from([0.1, 0.7, 1.0, 2.9]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(id=IDS, ttl=TTLS, metadata=st.dictionaries(KEYS, st.text(max_size=3), max_size=2))
    def open(self, id: str, ttl: float | None, metadata: dict[str, str]) -> None:
        self.both("open", id, ttl, metadata, self.now)

    @rule(uses=st.lists(st.tuples(IDS, st.floats(0, 2)), max_size=3))
    def keep(self, uses: list[tuple[str, float]]) -> None:
        self.both("keep", [(id, self.now - ago) for id, ago in uses])

    @rule(id=IDS)
    def remove(self, id: str) -> None:
        self.both("remove", id)

    @rule(ids=st.lists(IDS, unique=True))
    def expire(self, ids: list[str]) -> None:
        self.both("expire", ids, self.now)

    @rule(most=st.integers(1, 3))
    def due(self, most: int) -> None:
        found = self.tables.due(self.now, most)
        over = {id for id in self.model.sessions if not self.model.alive(id, self.now)}
        assert len(found) == min(most, len(over))
        assert set(found) <= over

    @rule(id=IDS, key=KEYS, data=DATA, expect=st.none() | st.integers(0, 4))
    def put(self, id: str, key: str, data: bytes, expect: int | None) -> None:
        self.both("put", id, key, data, expect, self.now)

    @rule(id=IDS, key=KEYS)
    def read(self, id: str, key: str) -> None:
        self.both("read", id, key, self.now)

    @rule(id=IDS, key=KEYS)
    def discard(self, id: str, key: str) -> None:
        self.both("discard", id, key, self.now)

    @rule(id=IDS)
    def keys(self, id: str) -> None:
        self.both("keys", id, self.now)

    @rule(session=st.none() | IDS, name=KEYS, data=DATA, ttl=TTLS)
    def put_program(self, session: str | None, name: str, data: bytes, ttl: float | None) -> None:
        self.both("put_program", session, name, data, ttl, self.now)

    @rule(session=st.none() | IDS, name=KEYS)
    def discard_program(self, session: str | None, name: str) -> None:
        self.both("discard_program", session, name, self.now)

    @rule(session=st.none() | IDS, name=KEYS)
    def program(self, session: str | None, name: str) -> None:
        self.both("program", session, name, self.now)
        self.both("programs", session, self.now)

    @invariant()
    def they_show_the_same(self) -> None:
        if hasattr(self, "model"):
            assert self.tables.sessions(self.now) == self.model.all(self.now)
            assert self.tables.next_expiry() == self.model.next_expiry()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.tables.close()


def check(machine: type[StoreMachine], examples: int, steps: int = 30) -> None:
    profile = hypothesis.settings()
    settings = hypothesis.settings(max_examples=min(examples, profile.max_examples), stateful_step_count=steps)
    if profile.max_examples > 1000:
        settings = hypothesis.settings(max_examples=profile.max_examples, stateful_step_count=steps)
    run_state_machine_as_test(machine, settings=settings)


def test_memory() -> None:
    class Memory(StoreMachine):
        def make(self, limits: Limits) -> Tables:
            return SqlTables(":memory:", limits)

    check(Memory, 80)


def test_sqlite_file_that_is_opened_anew(tmp_path: Path) -> None:
    class File(StoreMachine):
        count = 0

        def make(self, limits: Limits) -> Tables:
            File.count += 1
            self.path = str(tmp_path / f"{File.count}.db")
            self.limits = limits
            return SqlTables(self.path, limits)

        @rule()
        def restart(self) -> None:
            self.tables.close()
            self.tables = SqlTables(self.path, self.limits)

    check(File, 25, 20)


def test_a_sqlite_file_is_private_and_of_a_known_format(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "store.db"
    tables = SqlTables(str(path), Limits())
    tables.open("a", None, {}, 0.0)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    tables.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(sqlite3.DatabaseError, match="later version"):
        SqlTables(str(path), Limits())


# ---- Redis -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


def test_redis(redis_url: str) -> None:
    from snakepit_trio.sessions.redis_tables import RedisTables

    class Server(StoreMachine):
        def make(self, limits: Limits) -> Tables:
            tables = RedisTables(redis_url, limits)
            tables._redis.flushall()
            return tables

    check(Server, 40, 20)


def test_two_hosts_share_a_redis_and_its_quotas_are_exact(redis_url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from snakepit_trio.sessions.redis_tables import RedisTables

    hosts = [RedisTables(redis_url, Limits(max_sessions=10, session_max_entries=25)) for _ in range(2)]
    hosts[0]._redis.flushall()

    def open_one(number: int) -> bool:
        try:
            return hosts[number % 2].open(f"s{number}", None, {}, 0.0)[0]
        except QuotaExceeded:
            return False

    def add(number: int) -> bool:
        tables = hosts[number % 2]
        while True:
            data, version = tables.read("s", "sum", 0.0) or (b"0", 0)
            if tables.put("s", "sum", b"%d" % (int(data) + 1), version, 0.0) is not None:
                return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(open_one, range(40))) == 10
        hosts[0]._redis.flushall()
        hosts[0].open("s", None, {}, 0.0)
        assert all(threads.map(add, range(60)))
    assert hosts[1].read("s", "sum", 0.0) == (b"60", 60)
    for tables in hosts:
        tables.close()
