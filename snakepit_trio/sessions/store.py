"""The store of sessions and programs for the event loop: in memory, in a SQLite file, or on a Redis server.

Memory answers at once. The others may wait for a disk or a network, so they run in a worker thread, and the caller
waits for them even when it is cancelled: a write is done or not, never half. The tables' own limit on a lock or a
socket bounds that wait; only a disk that hangs in the kernel has no limit, and no scope could end that.
"""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from snakepit_trio.errors import ConfigError, SnakepitError
from snakepit_trio.observe.redaction import redact

from .records import Limits, ProgramInfo, SessionInfo
from .sql import SqlTables

__all__ = ["Store", "Tables", "open_store"]

T = TypeVar("T")


class Tables(Protocol):
    """The blocking interface of every kind of store; see :class:`snakepit_trio.sessions.sql.SqlTables` for each method."""

    def open(
        self,
        id: str,
        ttl: float | None,
        metadata: dict[str, str],
        now: float,
        *,
        generation: str | None = None,
        make: bool = True,
    ) -> tuple[bool, float | None, str]: ...
    def keep(self, uses: list[tuple[str, str, float]]) -> list[str]: ...
    def info(self, id: str, now: float) -> SessionInfo | None: ...
    def sessions(self, now: float) -> list[SessionInfo]: ...
    def remove(self, id: str, *, generation: str | None = None) -> bool: ...
    def due(self, now: float, most: int) -> list[str]: ...
    def expire(self, ids: list[str], now: float) -> list[str]: ...
    def next_expiry(self) -> float: ...
    def put(
        self, id: str, key: str, data: bytes, expect: int | None, now: float, *, generation: str | None = None
    ) -> int | None: ...
    def read(self, id: str, key: str, now: float, *, generation: str | None = None) -> tuple[bytes, int] | None: ...
    def discard(self, id: str, key: str, now: float, *, generation: str | None = None) -> bool: ...
    def keys(self, id: str, now: float, *, generation: str | None = None) -> list[str]: ...
    def put_program(self, session: str | None, name: str, data: bytes, ttl: float | None, now: float) -> None: ...
    def program(self, session: str | None, name: str, now: float) -> bytes | None: ...
    def discard_program(self, session: str | None, name: str, now: float) -> bool: ...
    def programs(self, session: str | None, now: float) -> list[ProgramInfo]: ...
    def close(self) -> None: ...


class Store:
    """Calls tables from the event loop.

    Args:
        tables: The tables.
        clock: The clock of the tables, in seconds.
        blocking: Whether the tables may wait, and are called in a thread.
        shared: Whether other processes may change the tables.
        failures: The exceptions that the tables raise when they can't be reached.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        clock: Callable[[], float],
        blocking: bool,
        shared: bool,
        failures: tuple[type[Exception], ...],
    ) -> None:
        self.tables = tables
        self.clock = clock
        self.shared = shared
        self._blocking = blocking
        self._failures = failures
        # One call at a time, because SQLite has one connection, and to keep the order.
        self._limiter = anyio.CapacityLimiter(1)

    async def ask(self, method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call a method of the tables. A cancellation comes before the call or after it."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            if not self._blocking:
                return method(*arguments, **options)
            return await anyio.to_thread.run_sync(
                functools.partial(method, *arguments, **options), limiter=self._limiter
            )
        except self._failures as exc:
            raise SnakepitError(f"the store of sessions can't be used: {redact(str(exc))}", retryable=True) from exc


@asynccontextmanager
async def open_store(place: str, limits: Limits) -> AsyncIterator[Store]:
    """Open ``"memory"``, ``"sqlite:PATH"`` or ``"redis://..."``.

    Raises:
        ConfigError: The store can't be opened; the error gives the reason.
    """
    tables: Tables
    clock: Callable[[], float] = time.time
    failures: tuple[type[Exception], ...] = (sqlite3.Error,)
    if place == "memory":
        tables, clock = SqlTables(":memory:", limits), anyio.current_time
    elif place.startswith("sqlite:"):
        try:
            tables = await anyio.to_thread.run_sync(SqlTables, place.removeprefix("sqlite:"), limits)
        except (sqlite3.Error, OSError) as exc:
            raise _unusable(place, exc) from exc
    else:
        try:
            import redis

            from .redis_tables import RedisTables
        except ImportError as exc:
            raise _unusable(place, "install snakepit-trio[redis]") from exc
        failures = (redis.RedisError, OSError)
        try:
            tables = await anyio.to_thread.run_sync(RedisTables, place, limits)
        except (redis.RedisError, OSError, ValueError) as exc:
            raise _unusable(place, exc) from exc
    store = Store(tables, clock=clock, blocking=place != "memory", shared=place != "memory", failures=failures)
    try:
        yield store
    finally:
        tables.close()


def _unusable(place: str, why: object) -> ConfigError:
    return ConfigError(
        f"store: {redact(place)} can't be used: {redact(str(why))}",
        details={"source": "code", "key": "store", "expected": "'memory', 'sqlite:PATH' or 'redis://HOST'"},
    )
