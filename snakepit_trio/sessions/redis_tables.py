"""Sessions and programs on a Redis or Valkey server, shared by all runtimes that use it.

Each method is one Lua script, and so one step of the server: what it refuses has changed nothing, and quotas are exact
whoever else writes. What has expired, and the clock, are as in :mod:`snakepit_trio.sessions.sql`; the server's own expiry
is not used, since it knows nothing of the books.

Layout, below the prefix ``{snakepit}:`` (the braces keep all of it in one slot of a cluster)::

    s:ID        hash: ttl, metadata, created, used, expires, entries, size, writes, generation
    v:ID, n:ID  hashes: the session's values, and their versions, by key
    p:ID        hash: programs by name; of no session when ID is empty
    sessions    set of ids
    expiry      sorted set of ids by when they expire
    lapse       sorted set of "ID\\nNAME" of programs by when they expire
    totals      hash: programs, bytes
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .records import Limits, OddRows, ProgramInfo, SessionInfo, new_generation, over_quota, session_not_found
from .redis_scripts import SCRIPTS

__all__ = ["RedisTables"]

T = TypeVar("T")

PREFIX = "{snakepit}:"
#: Seconds. The longest time for an answer of the server.
_PATIENCE = 5.0


class RedisTables:
    """The tables of one store; see :class:`snakepit_trio.sessions.sql.SqlTables` for the meaning and errors of each
    method.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; also ``valkey://`` and ``valkeys://``.
        limits: The quotas. Runtimes that share a server should use the same.
        prefix: The prefix of every key.

    Raises:
        redis.RedisError: The server can't be reached.
        ValueError: The address is invalid.
    """

    def __init__(self, url: str, limits: Limits, *, prefix: str = PREFIX) -> None:
        self._limits = limits
        self._prefix = prefix
        if url.startswith("valkey"):
            url = "redis" + url.removeprefix("valkey")
        # A script is never retried, because its first run may have happened and its answer been lost.
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )
        self._odd = OddRows()
        self._scripts = {name: self._redis.register_script(script) for name, script in SCRIPTS.items()}
        try:
            self._redis.ping()
        except BaseException:
            self._redis.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _run(self, name: str, now: float, *arguments: str | bytes | float) -> Any:
        result, odd = self._scripts[name](keys=[self._prefix], args=[repr(float(now)), *arguments])
        for kind, *names in odd:
            self._odd.tell(kind.decode(), *filter(None, names))
        return result

    def _do(self, name: str, session: str | None, now: float, *arguments: str | bytes | float) -> list[Any]:
        """Run a script that may refuse, and return its answer after ``ok``."""
        answer: list[Any]
        verdict, *answer = self._run(name, now, session or "", *arguments)
        if verdict == b"session":
            raise session_not_found(session or "")
        if verdict == b"quota":
            quota, limit, used, asked = answer
            raise over_quota(quota.decode(), limit, used, asked)
        return answer

    # ---- sessions ----------------------------------------------------------------------------------

    def open(
        self, id: str, ttl: float | None, metadata: dict[str, str], now: float, *, generation: str | None = None,
        make: bool = True,
    ) -> tuple[bool, float | None, str]:  # fmt: skip
        quota = _limit(self._limits.max_sessions)
        fresh = new_generation() if make else ""
        made, life, found = self._do(
            "open", id, now, _life(ttl), msgspec.json.encode(metadata), quota, generation or "", fresh
        )
        return bool(made), float(life) if life else None, found.decode()

    def keep(self, uses: list[tuple[str, str, float]]) -> list[str]:
        told = (part for id, generation, at in uses for part in (id, generation, repr(at)))
        return [id.decode() for id in self._run("keep", 0.0, *told)]

    def info(self, id: str, now: float) -> SessionInfo | None:
        found = self._run("info", now, id)
        return None if found is None else self._session(id, found, now)

    def sessions(self, now: float) -> list[SessionInfo]:
        found = self._texts("session", self._run("sessions", now), lambda row: row[0])
        return sorted((self._session(id, flat, now) for id, (_, flat) in found), key=lambda info: info.id)

    def remove(self, id: str, *, generation: str | None = None) -> bool:
        return bool(self._run("remove", 0.0, id, generation or ""))

    def due(self, now: float, most: int) -> list[str]:
        found = []
        for raw in self._run("due", now, most):
            try:
                found.append(raw.decode())
            except UnicodeDecodeError:
                # An expired row under a key that no caller can name.
                self._odd.tell("session", raw)
                self._run("remove", now, raw, "")
        return found

    def expire(self, ids: list[str], now: float) -> list[str]:
        return [id.decode() for id in self._run("expire", now, *ids)]

    def next_expiry(self) -> float:
        return min(map(float, self._run("next_expiry", 0.0)), default=math.inf)

    # ---- their values --------------------------------------------------------------------------------

    def put(
        self, id: str, key: str, data: bytes, expect: int | None, now: float, *, generation: str | None = None
    ) -> int | None:
        limits = self._limits
        quotas = _limit(limits.session_max_entries), _limit(limits.session_max_bytes)
        wanted = -1 if expect is None else expect
        version: int = self._do("put", id, now, key, data, wanted, *quotas, generation or "")[0]
        return version or None

    def read(self, id: str, key: str, now: float, *, generation: str | None = None) -> tuple[bytes, int] | None:
        data, version = self._do("read", id, now, key, generation or "")
        return None if data is None else (data, int(float(version)))

    def discard(self, id: str, key: str, now: float, *, generation: str | None = None) -> bool:
        return bool(self._do("discard", id, now, key, generation or "")[0])

    def keys(self, id: str, now: float, *, generation: str | None = None) -> list[str]:
        found = self._do("keys", id, now, generation or "")[0]
        return sorted(key for key, _ in self._texts("value", found, lambda raw: raw, id))

    # ---- programs ------------------------------------------------------------------------------------

    def put_program(self, session: str | None, name: str, data: bytes, ttl: float | None, now: float) -> None:
        limits = self._limits
        quotas = _limit(limits.program_max_bytes), _limit(limits.max_programs), _limit(limits.programs_max_bytes)
        self._do("put_program", session, now, name, data, _life(ttl), *quotas)

    def program(self, session: str | None, name: str, now: float) -> bytes | None:
        found: bytes | None = self._run("program", now, session or "", name)
        return found

    def discard_program(self, session: str | None, name: str, now: float) -> bool:
        return bool(self._run("discard_program", now, session or "", name))

    def programs(self, session: str | None, now: float) -> list[ProgramInfo]:
        rows = self._run("programs", now, session or "")
        found = [
            ProgramInfo(name=name, session=session, size=size, expires_in=float(lapse) - now if lapse else None)
            for name, (_, size, lapse) in self._texts(
                "program", rows, lambda row: row[0], *([session] if session else [])
            )
        ]
        return sorted(found, key=lambda info: info.name)

    # ---- inside --------------------------------------------------------------------------------------

    def _texts(self, kind: str, rows: list[T], raw: Callable[[T], bytes], *owner: str) -> list[tuple[str, T]]:
        """Return the rows with their names, without rows whose names are not text."""
        found = []
        for row in rows:
            try:
                found.append((raw(row).decode(), row))
            except UnicodeDecodeError:
                self._odd.tell(kind, raw(row), *owner)
        return found

    def _session(self, id: str, flat: list[bytes], now: float) -> SessionInfo:
        """Return a session from a hash with valid numbers."""
        record = dict(zip(flat[::2], flat[1::2], strict=True))
        ttl, expires = record.get(b"ttl"), record.get(b"expires")
        return SessionInfo(
            id=id,
            ttl=None if ttl is None else float(ttl),
            metadata=self._odd.metadata(id, record.get(b"metadata")),
            created_at=float(record[b"created"]),
            used_at=float(record[b"used"]),
            expires_in=None if expires is None else float(expires) - now,
            entries=int(float(record[b"entries"])),
            size=int(float(record[b"size"])),
            generation=record.get(b"generation", b"of " + record[b"created"]).decode(),
        )


def _limit(value: int | None) -> int:
    return -1 if value is None else value


def _life(ttl: float | None) -> str:
    return "" if ttl is None else repr(float(ttl))
