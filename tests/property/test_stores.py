"""The stores of sessions and programs, all three against one model; the clock is the test's."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from snakepit_trio.errors import QuotaExceeded, SessionNotFound
from snakepit_trio.sessions.records import Limits, ProgramInfo, SessionInfo
from snakepit_trio.sessions.sql import SqlTables
from snakepit_trio.sessions.store import Tables
from tests.redis_server import redis_server

IDS = ["a", "A", "c d", "\u20ac'\"{}", "x" * 256, "a\0", "\0a", "\U0001f600"]
#: Two of them are the same letter, composed and not.
KEYS = ["k", "K", "\u00e9", "e\u0301", "k\0", "\0", "%", "*"]
TTLS = [None, 1.0, 3.5]


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

    def meant(self, id: str, generation: str | None) -> bool:
        return generation is None or generation == self.sessions[id]["generation"]

    def touch(self, id: str, now: float, generation: str | None = None) -> None:
        if not self.alive(id, now) or not self.meant(id, generation):
            raise SessionNotFound
        self.use(id, now)

    def check(self, quota: str, used: int, more: int) -> None:
        limit = getattr(self.limits, quota)
        if limit is not None and used + more > limit:
            raise QuotaExceeded(details={"quota": quota, "limit": limit, "used": used, "asked": more})

    def size(self, id: str) -> int:
        return sum(len(key.encode()) + len(data) for key, (data, _) in self.sessions[id]["items"].items())

    # ---- as Tables -----------------------------------------------------------------------------------

    def open(
        self,
        id: str,
        ttl: float | None,
        metadata: dict[str, str],
        now: float,
        generation: str | None = None,
        make: bool = True,
    ) -> tuple[bool, float | None, str]:
        if self.alive(id, now) and self.meant(id, generation):
            self.use(id, now)
            life = self.sessions[id]["ttl"]
            return False, None if life == math.inf else life, self.sessions[id]["generation"]
        if not make:
            raise SessionNotFound
        self.remove(id)
        self.check("max_sessions", len(self.sessions), 1)
        life = math.inf if ttl is None else ttl
        self.sessions[id] = {
            "ttl": life, "metadata": metadata, "created": now, "used": now, "expires": now + life, "items": {}, "writes": 0,
            "generation": "",
        }  # fmt: skip
        return True, ttl, ""

    def keep(self, uses: list[tuple[str, str, float]]) -> list[str]:
        found = [id for id, generation, _ in uses if id in self.sessions and self.meant(id, generation)]
        for id, _, at in uses:
            if id in found:
                self.use(id, at)
        return [id for id, *_ in uses if id not in found]

    def info(self, id: str, now: float) -> SessionInfo | None:
        if not self.alive(id, now):
            return None
        found = self.sessions[id]
        endless = found["ttl"] == math.inf
        return SessionInfo(
            id=id, ttl=None if endless else found["ttl"], metadata=found["metadata"], created_at=found["created"],
            used_at=found["used"], expires_in=None if endless else found["expires"] - now,
            entries=len(found["items"]), size=self.size(id), generation=found["generation"],
        )  # fmt: skip

    def all(self, now: float) -> list[SessionInfo]:
        return [info for id in sorted(self.sessions) if (info := self.info(id, now)) is not None]

    def remove(self, id: str, generation: str | None = None) -> bool:
        if generation is not None and not (id in self.sessions and self.meant(id, generation)):
            return False
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

    def put(
        self, id: str, key: str, data: bytes, expect: int | None, now: float, generation: str | None = None
    ) -> int | None:
        self.touch(id, now, generation)
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

    def read(self, id: str, key: str, now: float, generation: str | None = None) -> Any:
        self.touch(id, now, generation)
        return self.sessions[id]["items"].get(key)

    def discard(self, id: str, key: str, now: float, generation: str | None = None) -> bool:
        self.touch(id, now, generation)
        return self.sessions[id]["items"].pop(key, None) is not None

    def keys(self, id: str, now: float, generation: str | None = None) -> list[str]:
        self.touch(id, now, generation)
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


class StoreWalk:
    """A seeded walk: every method gives what the model gives, or refuses as it does; nothing is ever half done.

    Names are drawn from those that are there, most of the time, so that what is asked for is found.
    """

    def __init__(self, seed: int, make: Callable[[Limits], Tables]) -> None:
        rng = self.rng = random.Random(seed)
        limits = Limits()
        if rng.random() < 0.7:
            limits = Limits(
                max_sessions=2, session_max_entries=2, session_max_bytes=30, max_programs=4, program_max_bytes=30,
                programs_max_bytes=60,
            )  # fmt: skip
        self.time = rng.choice([0.0, 1.7e9])
        # Two hosts ask in turns, and their clocks differ.
        self.apart = rng.choice([0.0, 0.0, 0.3, -2.0])
        self.host = 0
        self.model = Model(limits)
        self.limits = limits
        self.tables = make(limits)
        self.seen: Counter[str] = Counter()
        self.generations: list[str] = []
        for _ in range(2):
            self.open()
            self.put()
            self.put_program()

    @property
    def now(self) -> float:
        """The time on the clock of the host that asks."""
        return self.time + self.host * self.apart

    def both(self, name: str, *arguments: Any, **options: Any) -> Any:
        outcomes: list[tuple[str, Any]] = []
        for side in (self.tables, self.model):
            try:
                outcomes.append(("gave", getattr(side, name)(*arguments, **options)))
                if name == "open" and side is self.tables and outcomes[0][1][0]:
                    self.made = outcomes[0][1][2]
                    assert self.made not in self.generations
                    self.generations.append(self.made)
                elif name == "open" and side is self.model and outcomes[1][1][0]:
                    self.model.sessions[arguments[0]]["generation"] = self.made
                    outcomes[1] = "gave", (*outcomes[1][1][:2], self.made)
            except SessionNotFound:
                outcomes.append(("no session", None))
            except QuotaExceeded as exc:
                outcomes.append(("quota", exc.details))
        assert outcomes[0] == outcomes[1], name
        kind, value = outcomes[0]
        self.seen[f"{name}: {kind if kind != 'gave' else 'found' if value or value == b'' else 'nothing'}"] += 1
        return value

    def step(self) -> None:
        self.host = self.rng.randrange(2)
        kind, weight = zip(*_STEPS.items(), strict=True)
        getattr(self, self.rng.choices(kind, weight)[0])()
        assert self.tables.sessions(self.now) == self.model.all(self.now)
        assert self.tables.next_expiry() == self.model.next_expiry()

    # ---- what is asked for -------------------------------------------------------------------------

    def pick(self, there: Iterable[str], all: list[str]) -> str:
        known = sorted(there)
        return self.rng.choice(known if known and self.rng.random() < 0.85 else all)

    def id(self) -> str:
        return self.pick(self.model.sessions, IDS)

    def generation(self, id: str) -> dict[str, str]:
        """How a handle asks: of its own session, which may be over; none asks for whichever has the id."""
        if self.rng.random() < 0.4 or not self.generations:
            return {}
        if id in self.model.sessions and self.rng.random() < 0.8:
            return {"generation": self.model.sessions[id]["generation"]}
        return {"generation": self.rng.choice(self.generations)}

    def owner(self) -> str | None:
        return self.id() if self.rng.random() < 0.6 else None

    def name(self, session: str | None) -> str:
        return self.pick((name for owner, name in self.model.blobs if owner == (session or "")), KEYS)

    def key(self, id: str) -> str:
        return self.pick(self.model.sessions.get(id, {}).get("items", ()), KEYS)

    def data(self) -> bytes:
        most = self.rng.choice([0, 3, 12, 40])
        return b"\0x" * 500_000 if self.rng.random() < 0.01 else self.rng.randbytes(self.rng.randint(0, most))

    # ---- steps -------------------------------------------------------------------------------------

    def time_passes(self) -> None:
        self.time += self.rng.choice([0.1, 0.7, 1.0, 2.9])

    def open(self) -> None:
        metadata = {key: "x" * self.rng.randint(0, 3) for key in self.rng.sample(KEYS, self.rng.randint(0, 2))}
        id = self.rng.choice(IDS) if self.rng.random() < 0.5 else self.id()
        options = {**self.generation(id), "make": False} if self.rng.random() < 0.2 else {}
        self.both("open", id, self.rng.choice(TTLS), metadata, self.now, **options)

    def keep(self) -> None:
        ids = {self.id() for _ in range(self.rng.randint(0, 3))}
        uses = [
            (id, self.generation(id).get("generation", "none"), self.now - self.rng.uniform(0, 2)) for id in sorted(ids)
        ]
        self.both("keep", uses)

    def remove(self) -> None:
        id = self.id()
        self.both("remove", id, **self.generation(id))

    def expire(self) -> None:
        self.both("expire", self.rng.sample(IDS, self.rng.randint(0, len(IDS))), self.now)

    def due(self) -> None:
        most = self.rng.randint(1, 3)
        found = self.tables.due(self.now, most)
        over = {id for id in self.model.sessions if not self.model.alive(id, self.now)}
        assert len(found) == min(most, len(over))
        assert set(found) <= over
        self.seen["due: found" if found else "due: nothing"] += 1

    def put(self) -> None:
        id = self.id()
        key = self.key(id)
        version = self.model.sessions.get(id, {}).get("items", {}).get(key, (b"", 0))[1]
        expect = self.rng.choice([None, None, version, version, 7])
        stored = self.both("put", id, key, self.data(), expect, self.now, **self.generation(id))
        self.seen["put: stored" if stored else "put: not stored"] += 1

    def read(self) -> None:
        id = self.id()
        self.both("read", id, self.key(id), self.now, **self.generation(id))

    def discard(self) -> None:
        id = self.id()
        self.both("discard", id, self.key(id), self.now, **self.generation(id))

    def keys(self) -> None:
        id = self.id()
        self.both("keys", id, self.now, **self.generation(id))

    def put_program(self) -> None:
        session = self.owner()
        self.both("put_program", session, self.name(session), self.data(), self.rng.choice(TTLS), self.now)

    def discard_program(self) -> None:
        session = self.owner()
        self.both("discard_program", session, self.name(session), self.now)

    def program(self) -> None:
        session = self.owner()
        self.both("program", session, self.name(session), self.now)
        self.both("programs", session, self.now)


_STEPS = {
    "time_passes": 4, "open": 4, "keep": 3, "remove": 2, "expire": 2, "due": 2, "put": 8, "read": 5, "discard": 3, "keys": 3,
    "put_program": 6, "discard_program": 2, "program": 5,
}  # fmt: skip
#: What each walk has to come to, so that it shows something.
_MET = (
    "open: found", "open: quota", "open: no session", "put: stored", "put: not stored", "put: quota", "put: no session", "read: found", "read: nothing",
    "read: no session", "discard: found", "discard: nothing", "keys: found", "keys: nothing", "keys: no session", "discard: no session", "keep: found", "keep: nothing",
    "remove: found", "remove: nothing", "expire: found", "due: found", "put_program: quota", "program: found", "program: nothing",
    "programs: found", "discard_program: found", "discard_program: nothing",
)  # fmt: skip


def check(
    walks: int, steps: int, make: Callable[[Limits], Tables], between: Callable[[StoreWalk], None] | None = None
) -> None:
    seen: Counter[str] = Counter()
    for seed in range(walks * (20 if hypothesis.settings().max_examples > 1000 else 1)):
        walk = StoreWalk(seed, make)
        try:
            for number in range(steps):
                walk.step()
                if between is not None and number % 10 == 9:
                    between(walk)
        except AssertionError as exc:
            exc.add_note(f"seed {seed}")
            raise
        finally:
            walk.tables.close()
        seen += walk.seen
    assert all(seen[outcome] for outcome in _MET), {outcome: seen[outcome] for outcome in _MET if not seen[outcome]}


def test_memory() -> None:
    check(30, 120, lambda limits: SqlTables(":memory:", limits))


def test_sqlite_file_that_is_opened_anew(tmp_path: Path) -> None:
    paths = (str(tmp_path / f"{number}.db") for number in itertools.count())
    opened: list[str] = []

    def make(limits: Limits) -> Tables:
        opened.append(next(paths))
        return SqlTables(opened[-1], limits)

    def restart(walk: StoreWalk) -> None:
        walk.tables.close()
        walk.tables = SqlTables(opened[-1], walk.limits)

    check(12, 120, make, restart)


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


def check_one_without_generation(tables: Tables, made_anew: Callable[[], None]) -> None:
    """A session that was written before there were generations goes on, and is told from the next one of its id."""
    made, life, generation = tables.open("a", 9.0, {}, 20.0)
    assert (made, life) == (False, 50.0)
    assert tables.info("a", 20.0).generation == generation  # type: ignore[union-attr]
    assert tables.read("a", "k", 20.0, generation=generation) == (b"data", 1)
    assert tables.put("a", "k", b"more", 1, 20.0, generation=generation) == 2
    assert tables.keep([("a", generation, 30.0)]) == []
    # By a host of an earlier version.
    made_anew()
    assert tables.keep([("a", generation, 30.0)]) == ["a"]
    assert not tables.remove("a", generation=generation)
    for call in (
        lambda: tables.read("a", "k", 20.0, generation=generation),
        lambda: tables.put("a", "k", b"x", None, 20.0, generation=generation),
        lambda: tables.open("a", 1.0, {}, 20.0, generation=generation, make=False),
    ):
        with pytest.raises(SessionNotFound):
            call()
    other = tables.open("a", 9.0, {}, 20.0)[2]
    assert other != generation
    assert tables.remove("a", generation=other)


_BEFORE_GENERATIONS = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, ttl REAL, metadata BLOB NOT NULL, created REAL NOT NULL, used REAL NOT NULL, expires REAL,
    entries INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0, writes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE items (
    session TEXT NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (session, key)
) WITHOUT ROWID;
CREATE TABLE programs (
    session TEXT NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, expires REAL, PRIMARY KEY (session, name)
);
CREATE TABLE totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO totals VALUES ('sessions', 1), ('programs', 0), ('program_bytes', 0);
INSERT INTO sessions VALUES ('a', 50.0, '{}', 10.1, 10.1, 60.1, 1, 5, 1);
INSERT INTO items VALUES ('a', 'k', CAST('data' AS BLOB), 1);
PRAGMA user_version = 1;
"""


def test_a_sqlite_file_from_before_generations(tmp_path: Path) -> None:
    import sqlite3
    from concurrent.futures import ThreadPoolExecutor

    path = str(tmp_path / "store.db")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(_BEFORE_GENERATIONS)
        # Several runtimes may start at once.
        with ThreadPoolExecutor(4) as threads:
            opened = list(threads.map(lambda _: SqlTables(path, Limits()), range(4)))
        for tables in opened[1:]:
            tables.close()

        def made_anew() -> None:
            db.execute("UPDATE sessions SET created = 20.2, entries = 0, generation = NULL")

        check_one_without_generation(opened[0], made_anew)
        opened[0].close()


# ---- Redis -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


def test_redis(redis_url: str) -> None:
    from snakepit_trio.sessions.redis_tables import RedisTables

    def make(limits: Limits) -> Tables:
        tables = RedisTables(redis_url, limits)
        tables._redis.flushall()
        return tables

    check(20, 120, make)


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


def test_a_session_on_redis_from_before_generations(redis_url: str) -> None:
    from snakepit_trio.sessions.redis_tables import RedisTables

    with contextlib.closing(RedisTables(redis_url, Limits())) as tables:
        tables._redis.flushall()
        tables.open("a", 50.0, {}, 10.1)
        tables.put("a", "k", b"data", None, 10.1)
        tables._redis.hdel("{snakepit}:s:a", "generation")

        def made_anew() -> None:
            tables.remove("a")
            tables.open("a", 50.0, {}, 20.2)
            tables._redis.hdel("{snakepit}:s:a", "generation")

        check_one_without_generation(tables, made_anew)
