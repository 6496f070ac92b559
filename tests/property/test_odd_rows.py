"""Rows that make no sense, in each kind of store: told of once, passed over, and in nobody's way."""

from __future__ import annotations

import contextlib
import itertools
import math
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from snakepit_trio.errors import QuotaExceeded, SessionNotFound
from snakepit_trio.sessions.records import Limits
from snakepit_trio.sessions.sql import SqlTables
from snakepit_trio.sessions.store import Tables
from tests.redis_server import redis_server

#: What may stand in a column of any type.
ODD = [None, "abc", "", "nan", b"\xff\xfe", b"", -1, 0, 2**62, 1.5, -1.5, 1e308, math.inf, "\u00e9"]
COLUMNS = {
    "sessions": ["ttl", "metadata", "created", "used", "expires", "entries", "size", "writes", "generation"],
    "items": ["data", "version"],
    "programs": ["data", "expires"],
    "totals": ["value"],
}
NOW = 100.0


def fill(tables: Tables) -> None:
    """Two sessions alike, and what belongs to none."""
    for id in ("odd", "sound"):
        tables.open(id, 50.0, {"a": "b"}, NOW)
        for key in ("k", "l"):
            tables.put(id, key, b"data", None, NOW)
        tables.put_program(id, "p", b"program", None, NOW)
    for name in ("odd", "sound"):
        tables.put_program(None, name, b"program", 50.0, NOW)


def use(tables: Tables, *, spared: bool = True) -> None:
    """Everything that can be done with the odd ones; nothing raises but what says that they are not there."""
    for session in ("odd", "sound"):
        for name, *arguments in (
            ("info", session),
            ("keys", session),
            ("read", session, "k"),
            ("put", session, "m", b"x", 0),
            ("put", session, "k", b"y", None),
            ("discard", session, "m"),
            ("program", session, "p"),
            ("programs", session),
            ("put_program", session, "q", b"q", None),
            ("discard_program", session, "q"),
        ):
            try:
                getattr(tables, name)(*arguments, NOW)
            except SessionNotFound:
                assert session == "odd" or not spared
        tables.keep([(session, "0", NOW)])
    for name in ("odd", "sound"):
        tables.program(None, name, NOW)
    assert isinstance(tables.next_expiry(), float)
    names = {program.name for program in tables.programs(None, NOW)}
    if spared:
        info = tables.info("sound", NOW)
        assert info is not None and info.metadata == {"a": "b"} and info.entries == 2
        assert "sound" in {session.id for session in tables.sessions(NOW)}
        assert tables.read("sound", "l", NOW) == (b"data", 2)
        assert tables.program(None, "sound", NOW) == b"program" and "sound" in names
    # A session of that id can be made anew, and is a whole one.
    tables.remove("odd")
    assert tables.open("odd", 50.0, {}, NOW)[:2] == (True, 50.0)
    assert tables.put("odd", "k", b"new", 0, NOW) is not None
    assert tables.info("odd", NOW) is not None


def expire(tables: Tables, *, spared: bool = True) -> None:
    """What has expired goes, and no row stands in the way for ever."""
    for _ in range(10):
        due = tables.due(1e9, 100)
        tables.expire(due, 1e9)
        if not due:
            break
    assert tables.due(1e9, 100) == []
    assert not spared or (tables.info("sound", 1e9) is None and tables.info("odd", 1e9) is None)
    # A new one is not missed behind what is left.
    tables.open("new", 1.0, {}, 2e9)
    assert tables.due(3e9, 100) == ["new"]
    assert tables.expire(["new"], 3e9) == ["new"]


def check(tables: Tables, spoil: Callable[[], None], *, spared: bool = True) -> None:
    fill(tables)
    spoil()
    use(tables, spared=spared)
    expire(tables, spared=spared)


# ---- SQLite ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def sqlite(path: str = ":memory:") -> Iterator[SqlTables]:
    tables = SqlTables(path, Limits(max_sessions=10, max_programs=20, programs_max_bytes=10_000))
    try:
        yield tables
    finally:
        tables.close()


@pytest.mark.parametrize(("table", "column"), [(t, c) for t, columns in COLUMNS.items() for c in columns])
def test_any_value_in_any_column_of_sqlite(table: str, column: str) -> None:
    key = {"sessions": "id", "items": "session", "programs": "name", "totals": "name"}[table]
    for value in ODD:
        with sqlite() as tables:

            def spoil(value: object = value, tables: SqlTables = tables) -> None:
                # A column may not be NULL: nobody can have put that there.
                with contextlib.suppress(sqlite3.IntegrityError):
                    name = "sessions" if table == "totals" else "odd"
                    tables._db.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (value, name))

            # A total that is a number, but another one, is believed.
            if table != "totals" or type(value) is not int:
                check(tables, spoil)


@pytest.mark.parametrize(
    ("table", "columns"), [("sessions", ["id"]), ("items", ["session", "key"]), ("programs", ["session", "name"])]
)
def test_keys_of_sqlite_that_are_no_text(table: str, columns: list[str], tmp_path: Path) -> None:
    for number, (column, odd) in enumerate(
        itertools.product(columns, ["X'fffe'", "CAST(X'fffe' AS TEXT)", "17", "''"])
    ):
        with sqlite(str(tmp_path / f"{number}.db")) as tables:

            def spoil(column: str = column, odd: str = odd, tables: SqlTables = tables) -> None:
                own = {"sessions": "id = 'odd'", "items": "session = 'odd' AND key = 'k'", "programs": "name = 'odd'"}[
                    table
                ]
                tables._db.execute(f"UPDATE {table} SET {column} = {odd} WHERE {own}")

            check(tables, spoil)


def test_each_odd_row_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with sqlite() as tables:
        fill(tables)
        tables._db.execute("UPDATE sessions SET used = 'abc' WHERE id = 'odd'")
        tables._db.execute("UPDATE items SET data = 'abc' WHERE session = 'sound' AND key = 'k'")
        tables._db.execute("UPDATE sessions SET metadata = X'7b22' WHERE id = 'sound'")
        tables._db.execute("UPDATE programs SET data = 10000000000000 WHERE name = 'odd'")
        tables._db.execute("DELETE FROM totals WHERE name = 'sessions'")
        for _ in range(3):
            assert "odd" not in {info.id for info in tables.sessions(NOW)}
            assert tables.info("sound", NOW).metadata == {}  # type: ignore[union-attr]
            assert tables.read("sound", "k", NOW) is None
            # Not so many zeros.
            assert tables.program(None, "odd", NOW) is None
            tables.open("more", None, {}, NOW)
    told = [record.message.partition("passed over: ")[2] for record in caplog.records]
    # A session and a program have the same name.
    assert sorted(told) == ["'k' of 'sound'", "'odd'", "'odd'", "'sessions'", "'sound'"]


def test_a_lost_total_is_counted_anew() -> None:
    for spoil in ("UPDATE totals SET value = 'abc'", "DELETE FROM totals", "UPDATE totals SET value = X'ff'"):
        with sqlite() as tables:
            fill(tables)
            tables._db.execute(spoil)
            tables.put_program(None, "third", b"12345", None, NOW)
            tables.open("third", None, {}, NOW)
            assert {name: tables._total(name) for name in ("sessions", "programs", "program_bytes")} == {
                "sessions": 3, "programs": 5, "program_bytes": 33,
            }  # fmt: skip


@hypothesis.given(
    st.lists(
        st.tuples(
            st.sampled_from([(t, c) for t, columns in COLUMNS.items() for c in columns]),
            st.sampled_from(ODD) | st.text(max_size=3) | st.binary(max_size=3) | st.integers(-(2**63), 2**63 - 1),
        ),
        max_size=4,
    )
)
def test_several_at_once(spoilt: list[tuple[tuple[str, str], Any]]) -> None:
    with sqlite() as tables:

        def spoil() -> None:
            for (table, column), value in spoilt:
                with contextlib.suppress(sqlite3.IntegrityError):
                    tables._db.execute(f"UPDATE {table} SET {column} = ?", (value,))

        hypothesis.assume(not any(table == "totals" and type(value) is int for (table, _), value in spoilt))
        fill(tables)
        spoil()
        use(tables, spared=False)
        expire(tables, spared=False)


# ---- Redis ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    from snakepit_trio.sessions.redis_tables import RedisTables

    with redis_server() as url:
        tables = RedisTables(url, Limits(max_sessions=10, max_programs=20, programs_max_bytes=10_000))
        yield tables
        tables.close()


AT = "{snakepit}:"
FIELDS = ["ttl", "metadata", "created", "used", "expires", "entries", "size", "writes", "generation"]
VALUES = [b"abc", b"", b"nan", b"\xff\xfe", b"1.5", b"-1", b"1e400", b"0x10", b"99999999999999999999999"]


def spoilt(field: str, value: bytes | None) -> Callable[[Any], None]:
    def spoil(redis: Any) -> None:
        if value is None:
            redis.hdel(AT + "s:odd", field)
        else:
            redis.hset(AT + "s:odd", field, value)

    return spoil


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_in_any_field_of_redis(field: str, server: Any) -> None:
    for value in (*VALUES, None):
        server._redis.flushall()
        check(server, lambda value=value: spoilt(field, value)(server._redis))  # type: ignore[misc]


@pytest.mark.parametrize("key", ["s:odd", "v:odd", "n:odd", "p:odd"])
@pytest.mark.parametrize("kind", ["set", "sadd", "gone"])
def test_keys_of_another_type(key: str, kind: str, server: Any) -> None:
    def spoil() -> None:
        server._redis.delete(AT + key)
        if kind != "gone":
            getattr(server._redis, kind)(AT + key, b"x")

    server._redis.flushall()
    check(server, spoil)


WRITE: dict[str, Callable[[Any, str], object]] = {
    "string": lambda redis, key: redis.set(key, b"x"),
    "set": lambda redis, key: redis.sadd(key, b"x"),
    "list": lambda redis, key: redis.lpush(key, b"x"),
    "hash": lambda redis, key: redis.hset(key, b"x", b"y"),
    "zset": lambda redis, key: redis.zadd(key, {b"x": 1}),
    "stream": lambda redis, key: redis.xadd(key, {b"x": b"y"}),
}


@pytest.mark.parametrize(
    ("name", "own"), [("sessions", "set"), ("expiry", "zset"), ("lapse", "zset"), ("totals", "hash")]
)
def test_keys_that_all_share_of_another_type(
    name: str, own: str, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    redis = server._redis
    for kind, write in WRITE.items():
        if kind != own:
            redis.flushall()
            server._odd._told.clear()
            caplog.clear()

            def spoil(write: Callable[[Any, str], object] = write) -> None:
                redis.delete(AT + name)
                write(redis, AT + name)

            check(server, spoil)
            told = [record.message.partition("passed over: ")[2] for record in caplog.records]
            assert told == ["'programs'" if name == "totals" else f"'{name}'"]


def test_what_is_found_anew_of_sessions_is_all_of_them(server: Any) -> None:
    redis = server._redis
    redis.flushall()
    for number in range(9):
        server.open(f"s{number}", None if number % 2 else 10.0 + number, {}, NOW)
    for name in ("sessions", "expiry"):
        redis.set(AT + name, b"x")
    assert [info.id for info in server.sessions(NOW)] == [f"s{number}" for number in range(9)]
    assert server.next_expiry() == NOW + 10.0
    server.open("one more", None, {}, NOW)
    with pytest.raises(QuotaExceeded):
        server.open("too many", None, {}, NOW)
    assert sorted(server.due(NOW + 100.0, 100)) == ["s0", "s2", "s4", "s6", "s8"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda redis: redis.zadd(AT + "expiry", {b"\xff\xfe": 1, b"nobody": 2, b"": 3}),
        lambda redis: redis.zadd(AT + "expiry", {b"sound": 1}),
        lambda redis: redis.zrem(AT + "expiry", "odd"),
        lambda redis: redis.srem(AT + "sessions", "odd"),
        lambda redis: redis.sadd(AT + "sessions", b"\xff\xfe", b"nobody", b""),
        lambda redis: redis.zadd(AT + "lapse", {b"\xff": 1, b"\nnobody": 2, b"odd\nnobody": 3, b"": 4, b"\n": 5}),
        lambda redis: redis.hset(AT + "p:", b"\xff", b"x"),
        lambda redis: redis.hset(AT + "v:odd", b"\xff", b"x"),
        lambda redis: redis.hset(AT + "n:odd", "k", b"abc"),
        lambda redis: redis.hset(AT + "n:odd", "k", b"nan"),
        lambda redis: redis.hdel(AT + "n:odd", "k"),
        lambda redis: redis.hset(AT + "totals", "programs", "abc"),
        lambda redis: redis.hset(AT + "totals", "bytes", "nan"),
        lambda redis: redis.hdel(AT + "totals", "bytes"),
        lambda redis: redis.delete(AT + "totals") and redis.set(AT + "totals", "x"),
    ],
)
def test_what_others_may_have_written_to_redis(spoil: Callable[[Any], object], server: Any) -> None:
    server._redis.flushall()
    check(server, lambda: spoil(server._redis))


def test_each_is_told_of_once(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    redis = server._redis
    redis.flushall()
    fill(server)
    redis.hset(AT + "s:odd", "used", "abc")
    redis.hset(AT + "s:sound", "metadata", b"{")
    redis.sadd(AT + "sessions", b"\xff")
    redis.hset(AT.encode() + b"s:\xff", mapping=redis.hgetall(AT + "s:sound"))
    server._odd._told.clear()
    caplog.clear()
    for _ in range(3):
        assert [info.id for info in server.sessions(NOW)] == ["sound"]
        assert server.info("odd", NOW) is None
    told = [record.message.partition("passed over: ")[2] for record in caplog.records]
    assert sorted(told) == ["'odd'", "'sound'", "b'\\xff'"]


def test_a_refusal_of_the_server_is_no_odd_row(server: Any) -> None:
    import redis

    server._redis.flushall()
    fill(server)
    server._redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.RedisError):
            server.put("sound", "k", b"x" * 100, None, NOW)
    finally:
        server._redis.config_set("maxmemory", 0)
    assert server.read("sound", "k", NOW) == (b"data", 1)
