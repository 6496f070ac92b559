"""Sessions and programs in SQLite: in memory, or in a file that survives a restart.

Each method is one transaction: a refused operation has changed nothing. SQLite stores values of any type, so a row that
this module would not have written is reported once and ignored. An expired entry is invisible to its users, and counts
against quotas until it is swept by its owner, who may know of a later use. The caller provides the clock: ``now`` is in
seconds, and only differences matter.

An id may be used by one session after another. Each session has a *generation*, by which a handle asks for its own
session; a request without a generation is for the session that has the id now. A session written before generations
existed has its creation time instead.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from snakepit_trio.errors import QuotaExceeded

from .records import Limits, OddRows, ProgramInfo, SessionInfo, new_generation, over_quota, session_not_found

__all__ = ["SqlTables"]

_BUSY = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, ttl REAL, metadata BLOB NOT NULL, created REAL NOT NULL, used REAL NOT NULL, expires REAL,
    entries INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0, writes INTEGER NOT NULL DEFAULT 0, generation TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_expiry ON sessions (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS items (
    session TEXT NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (session, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS programs (
    session TEXT NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, expires REAL, PRIMARY KEY (session, name)
);
CREATE INDEX IF NOT EXISTS programs_expiry ON programs (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO totals VALUES ('sessions', 0), ('programs', 0), ('program_bytes', 0);
"""
_FORMAT = 2
#: The statement that converts the previous format to the format of this number.
_CHANGES = {2: "ALTER TABLE sessions ADD COLUMN generation TEXT"}
_NUMBER = "IN ('real', 'integer')"
#: The condition that a row of sessions is well-formed.
_SOUND = (
    f"typeof(created) {_NUMBER} AND typeof(used) {_NUMBER} AND typeof(coalesce(ttl, 0)) {_NUMBER}"
    f" AND typeof(coalesce(expires, 0)) {_NUMBER} AND typeof(entries) = 'integer' AND typeof(size) = 'integer'"
    " AND typeof(writes) = 'integer'"
    " AND (generation IS NULL OR (typeof(generation) = 'text' AND generation GLOB '?*'"
    " AND generation NOT GLOB '*[^0-9a-z]*'))"
)
_GENERATION = "coalesce(generation, 'of ' || printf('%!.17g', created))"
#: A query that counts each total from scratch.
_COUNTS = {
    "sessions": "SELECT count(*) FROM sessions",
    "programs": "SELECT count(*) FROM programs",
    "program_bytes": "SELECT coalesce(sum(length(data)), 0) FROM programs",
}


class SqlTables:
    """The tables of one store.

    Args:
        path: A file, or ``":memory:"``.
        limits: The quotas.

    Raises:
        sqlite3.Error, OSError: The file can't be opened.
    """

    def __init__(self, path: str, limits: Limits) -> None:
        self._limits = limits
        self._odd = OddRows()
        if path != ":memory:":
            # Private to its owner from the start; SQLite gives its other files the same mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        # Text that is not UTF-8 belongs to no session, and must not make queries fail.
        self._db.text_factory = lambda data: data.decode(errors="backslashreplace")
        try:
            if path != ":memory:":
                self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
            self._make()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _make(self) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > _FORMAT:
                raise sqlite3.DatabaseError(f"it was written by a later version of this library (format {version})")
            for step in range(version + 1, _FORMAT + 1) if version else ():
                self._db.execute(_CHANGES[step])
            for statement in _SCHEMA.split(";")[:-1]:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except QuotaExceeded:
            # Quotas are checked before any write except the use of the session, and a refused operation counts as use
            # too.
            self._db.execute("COMMIT")
            raise
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _total(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM totals WHERE name = ?", (name,)).fetchone()
        return row[0] if row is not None and type(row[0]) is int else self._count(name)

    def _add(self, name: str, amount: int) -> None:
        """Add an amount to a total."""
        changed = self._db.execute(
            "UPDATE totals SET value = value + ? WHERE name = ? AND typeof(value) = 'integer'", (amount, name)
        )
        if changed.rowcount != 1:
            self._count(name)

    def _count(self, name: str) -> int:
        """Recompute a lost total."""
        self._odd.tell("total", name)
        found: int = self._db.execute(_COUNTS[name]).fetchone()[0]
        self._db.execute("INSERT OR REPLACE INTO totals VALUES (?, ?)", (name, found))
        return found

    # ---- sessions ----------------------------------------------------------------------------------

    def open(
        self, id: str, ttl: float | None, metadata: dict[str, str], now: float, *, generation: str | None = None,
        make: bool = True,
    ) -> tuple[bool, float | None, str]:  # fmt: skip
        """Create a session, or use the session of this id. Returns whether it was created, its TTL, and its generation.

        Args:
            generation: Accept only the session of this generation.
            make: Whether to create a missing session.

        Raises:
            SessionNotFound: There is no such session, and ``make`` is false.
            QuotaExceeded: There are already ``max_sessions`` other sessions.
        """
        with self._transaction():
            if self._touch(id, now, generation):
                query = f"SELECT ttl, {_GENERATION} FROM sessions WHERE id = ?"
                return (False, *self._db.execute(query, (id,)).fetchone())
            if not make:
                raise session_not_found(id)
            self._remove(id)
            limit, used = self._limits.max_sessions, self._total("sessions")
            if limit is not None and used >= limit:
                raise over_quota("max_sessions", limit, used, 1)
            self._db.execute(
                "INSERT INTO sessions (id, ttl, metadata, created, used, expires, generation) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    id,
                    ttl,
                    msgspec.json.encode(metadata),
                    now,
                    now,
                    None if ttl is None else now + ttl,
                    made := new_generation(),
                ),
            )
            self._add("sessions", 1)
            return True, ttl, made

    def keep(self, uses: list[tuple[str, str, float]]) -> list[str]:
        """Record uses of sessions, by id and generation, at these times. A use extends the session by its TTL, even after
        its expiry.

        Returns the ids of sessions that no longer exist.
        """
        with self._transaction():
            return [id for id, generation, at in uses if not self._keep(id, at, generation)]

    def info(self, id: str, now: float) -> SessionInfo | None:
        """Return a snapshot of a session. Does not count as use."""
        row = self._db.execute(
            f"SELECT *, {_GENERATION} FROM sessions WHERE id = ? AND coalesce(expires > ?, 1) AND {_SOUND}", (id, now)
        ).fetchone()
        return None if row is None else self._session(row, now)

    def sessions(self, now: float) -> list[SessionInfo]:
        """Return all sessions, sorted by id."""
        for odd in self._db.execute(f"SELECT id FROM sessions WHERE NOT ({_SOUND}) OR typeof(id) != 'text'"):
            self._odd.tell("session", *odd)
        rows = self._db.execute(
            f"SELECT *, {_GENERATION} FROM sessions"
            f" WHERE coalesce(expires > ?, 1) AND {_SOUND} AND typeof(id) = 'text' ORDER BY id",
            (now,),
        )
        return [self._session(row, now) for row in rows]

    def remove(self, id: str, *, generation: str | None = None) -> bool:
        """End a session, and delete its values and programs. Returns whether it existed."""
        with self._transaction():
            return (generation is None or self._is_of(id, generation)) and self._remove(id)

    def due(self, now: float, most: int) -> list[str]:
        """Return the ids of sessions that have expired, unless another process knows of a later use; the earliest first."""
        rows = self._db.execute(
            "SELECT typeof(id), CAST(id AS BLOB) FROM sessions WHERE expires <= ? ORDER BY expires LIMIT ?", (now, most)
        ).fetchall()
        found = []
        for kind, raw in rows:
            try:
                if kind != "text":
                    raise ValueError(kind)
                found.append(raw.decode())
            except ValueError:
                # An expired row under a key that no caller can name.
                self._odd.tell("session", raw)
                with self._transaction():
                    self._db.execute("DELETE FROM sessions WHERE CAST(id AS BLOB) = ?", (raw,))
                    self._add("sessions", -1)
        return found

    def expire(self, ids: list[str], now: float) -> list[str]:
        """Delete expired programs, and the expired ones of these sessions. Returns the ids of the deleted sessions."""
        with self._transaction():
            self._discard_programs("expires <= ?", (now,))
            return [id for id in ids if self._expired(id, now) and self._remove(id)]

    def next_expiry(self) -> float:
        """Return the time of the next expiry; infinity if there is none."""
        row = self._db.execute(
            "SELECT (SELECT min(expires) FROM sessions WHERE expires IS NOT NULL),"
            " (SELECT min(expires) FROM programs WHERE expires IS NOT NULL)"
        ).fetchone()
        # Text sorts after all numbers, so it appears only if there are no numbers.
        return min((float(at) for at in row if isinstance(at, int | float)), default=math.inf)

    # ---- their values --------------------------------------------------------------------------------

    def put(
        self, id: str, key: str, data: bytes, expect: int | None, now: float, *, generation: str | None = None
    ) -> int | None:
        """Store a value and return its version; None if ``expect`` is not the current version (0: no value).

        Versions are counted over the whole session, so no two values ever have the same version.

        Raises:
            SessionNotFound: There is no such session.
            QuotaExceeded: The value does not fit into the session.
        """
        with self._transaction():
            if not self._touch(id, now, generation):
                raise session_not_found(id)
            old = self._db.execute(
                "SELECT version, length(data) FROM items WHERE session = ? AND key = ?", (id, key)
            ).fetchone()
            version, old_size = old or (0, 0)
            if type(version) is not int:
                self._odd.tell("value", key, id)
                version = 0
            if expect is not None and expect != version:
                return None
            entries, size, writes = self._db.execute(
                "SELECT entries, size, writes FROM sessions WHERE id = ?", (id,)
            ).fetchone()
            key_size = len(key.encode())
            more_entries, more = (0, len(data) - old_size) if old else (1, len(data) + key_size)
            limit = self._limits.session_max_entries
            if limit is not None and entries + more_entries > limit:
                raise over_quota("session_max_entries", limit, entries, more_entries)
            limit = self._limits.session_max_bytes
            if limit is not None and more > 0 and size + more > limit:
                raise over_quota("session_max_bytes", limit, size, more)
            self._db.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", (id, key, data, writes + 1))
            self._db.execute(
                "UPDATE sessions SET entries = entries + ?, size = size + ?, writes = writes + 1 WHERE id = ?",
                (more_entries, more, id),
            )
            return int(writes) + 1

    def read(self, id: str, key: str, now: float, *, generation: str | None = None) -> tuple[bytes, int] | None:
        """Return a value and its version, or None if there is no value.

        Raises:
            SessionNotFound: There is no such session.
        """
        with self._transaction():
            if not self._touch(id, now, generation):
                raise session_not_found(id)
            row: tuple[bytes, int] | None = self._db.execute(
                "SELECT data, version FROM items WHERE session = ? AND key = ?", (id, key)
            ).fetchone()
            if row is not None and (type(row[0]) is not bytes or type(row[1]) is not int):
                self._odd.tell("value", key, id)
                return None
            return row

    def discard(self, id: str, key: str, now: float, *, generation: str | None = None) -> bool:
        """Delete a value, and return whether there was one.

        Raises:
            SessionNotFound: There is no such session.
        """
        with self._transaction():
            if not self._touch(id, now, generation):
                raise session_not_found(id)
            row = self._db.execute(
                "DELETE FROM items WHERE session = ? AND key = ? RETURNING length(data)", (id, key)
            ).fetchone()
            if row is None:
                return False
            self._db.execute(
                "UPDATE sessions SET entries = entries - 1, size = size - ? WHERE id = ?",
                (row[0] + len(key.encode()), id),
            )
            return True

    def keys(self, id: str, now: float, *, generation: str | None = None) -> list[str]:
        """The keys of a session's values, sorted.

        Raises:
            SessionNotFound: There is no such session.
        """
        with self._transaction():
            if not self._touch(id, now, generation):
                raise session_not_found(id)
            rows = self._db.execute("SELECT CAST(key AS BLOB) FROM items WHERE session = ? ORDER BY key", (id,))
            found = []
            for (raw,) in rows:
                try:
                    found.append(raw.decode())
                except UnicodeDecodeError:
                    self._odd.tell("value", raw, id)
            return found

    # ---- programs ------------------------------------------------------------------------------------

    def put_program(self, session: str | None, name: str, data: bytes, ttl: float | None, now: float) -> None:
        """Store a program, replacing one of the same name.

        Raises:
            SessionNotFound: There is no such session.
            QuotaExceeded: The program is too large, or does not fit.
        """
        with self._transaction():
            if session is not None and not self._touch(session, now):
                raise session_not_found(session)
            limit = self._limits.program_max_bytes
            if limit is not None and len(data) > limit:
                raise over_quota("program_max_bytes", limit, 0, len(data))
            old = self._db.execute(
                "SELECT length(data) FROM programs WHERE session = ? AND name = ?", (session or "", name)
            ).fetchone()
            more_programs, more = (0, len(data) - old[0]) if old else (1, len(data))
            limit, used = self._limits.max_programs, self._total("programs")
            if limit is not None and used + more_programs > limit:
                raise over_quota("max_programs", limit, used, more_programs)
            limit, used = self._limits.programs_max_bytes, self._total("program_bytes")
            if limit is not None and more > 0 and used + more > limit:
                raise over_quota("programs_max_bytes", limit, used, more)
            self._db.execute(
                "INSERT OR REPLACE INTO programs VALUES (?, ?, ?, ?)",
                (session or "", name, data, None if ttl is None else now + ttl),
            )
            self._add("programs", more_programs)
            self._add("program_bytes", more)

    def program(self, session: str | None, name: str, now: float) -> bytes | None:
        """Return a program, or None."""
        row = self._db.execute(
            "SELECT data, expires FROM programs WHERE session = ? AND name = ? AND coalesce(expires > ?, 1)",
            (session or "", name, now),
        ).fetchone()
        if row is None or (session is not None and self.info(session, now) is None):
            return None
        data, expires = row
        if type(data) is not bytes or not isinstance(expires, int | float | None):
            self._odd.tell("program", name, *([session] if session else []))
            return None
        return data

    def discard_program(self, session: str | None, name: str, now: float) -> bool:
        """Delete a program, and return whether there was one."""
        with self._transaction():
            found = self.program(session, name, now)
            self._discard_programs("session = ? AND name = ?", (session or "", name))
            return found is not None

    def programs(self, session: str | None, now: float) -> list[ProgramInfo]:
        """Return the programs of a session, or those for all, sorted by name."""
        if session is not None and self.info(session, now) is None:
            return []
        rows = self._db.execute(
            "SELECT CAST(name AS BLOB), typeof(data), length(data), expires FROM programs"
            " WHERE session = ? AND coalesce(expires > ?, 1) ORDER BY name",
            (session or "", now),
        )
        found = []
        for raw, kind, size, expires in rows:
            try:
                if kind != "blob" or not isinstance(expires, int | float | None):
                    raise ValueError(kind)
                life = None if expires is None else expires - now
                found.append(ProgramInfo(name=raw.decode(), session=session, size=size, expires_in=life))
            except ValueError:
                self._odd.tell("program", raw, *([session] if session else []))
        return found

    # ---- inside a transaction --------------------------------------------------------------------------

    def _touch(self, id: str, now: float, generation: str | None = None) -> bool:
        return not self._expired(id, now) and self._keep(id, now, generation)

    def _keep(self, id: str, at: float, generation: str | None) -> bool:
        # A late report of a use never shortens a later extension.
        changed = self._db.execute(
            "UPDATE sessions SET used = max(used, :at), expires = max(expires, :at + ttl)"
            f" WHERE id = :id AND {_SOUND} AND coalesce({_GENERATION} = :generation, 1)",
            {"at": at, "id": id, "generation": generation},
        )
        if changed.rowcount == 1:
            return True
        if self._db.execute(f"SELECT 1 FROM sessions WHERE id = ? AND NOT ({_SOUND})", (id,)).fetchone() is not None:
            self._odd.tell("session", id)
        return False

    def _is_of(self, id: str, generation: str) -> bool:
        query = f"SELECT 1 FROM sessions WHERE id = ? AND {_GENERATION} = ?"
        return self._db.execute(query, (id, generation)).fetchone() is not None

    def _expired(self, id: str, now: float) -> bool:
        row = self._db.execute("SELECT 1 FROM sessions WHERE id = ? AND expires <= ?", (id, now)).fetchone()
        return row is not None

    def _remove(self, id: str) -> bool:
        found = self._db.execute("DELETE FROM sessions WHERE id = ?", (id,)).rowcount == 1
        if found:
            self._add("sessions", -1)
        # Also for a missing session: a new session of this id must not find old values.
        self._db.execute("DELETE FROM items WHERE session = ?", (id,))
        self._discard_programs("session = ?", (id,))
        return found

    def _discard_programs(self, which: str, values: tuple[object, ...]) -> int:
        rows = self._db.execute(f"DELETE FROM programs WHERE {which} RETURNING length(data)", values).fetchall()
        if rows:
            self._add("programs", -len(rows))
            self._add("program_bytes", -sum(size for (size,) in rows))
        return len(rows)

    def _session(self, row: Any, now: float) -> SessionInfo:
        id, ttl, metadata, created, used, expires, entries, size, *_, generation = row
        return SessionInfo(
            id=id,
            ttl=ttl,
            metadata=self._odd.metadata(id, metadata),
            created_at=created,
            used_at=used,
            expires_in=None if expires is None else expires - now,
            entries=entries,
            size=size,
            generation=generation,
        )
