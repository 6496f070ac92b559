"""Sessions and programs on a Redis or Valkey server, shared by all runtimes that use it.

Each method is one Lua script, and so one step of the server: what it refuses has changed nothing, and quotas are exact
whoever else writes. What has expired, and the clock, are as in :mod:`snakepit_trio.sessions.sql`; the server's own expiry
is not used, since it knows nothing of the books.

Layout, below the prefix ``{snakepit}:`` (the braces keep all of it in one slot of a cluster)::

    s:ID        hash: ttl, metadata, created, used, expires, entries, size, writes
    v:ID, n:ID  hashes: the session's values, and their versions, by key
    p:ID        hash: programs by name; of no session when ID is empty
    sessions    set of ids
    expiry      sorted set of ids by when they expire
    lapse       sorted set of "ID\\nNAME" of programs by when they expire
    totals      hash: programs, bytes
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .records import Limits, ProgramInfo, SessionInfo, over_quota, session_not_found

__all__ = ["RedisTables"]

PREFIX = "{snakepit}:"
#: How long the server may take to answer, in seconds.
_PATIENCE = 5.0

# ``KEYS[1]`` is the prefix, ``ARGV[1]`` the time. Numbers are kept as text of 17 digits, which gives a double back exactly.
_PRELUDE = """
local at, now = KEYS[1], tonumber(ARGV[1])
local call = redis.call
local function text(number) return string.format('%.17g', number) end

local function alive(id)
    local found = call('HMGET', at .. 's:' .. id, 'used', 'expires')
    return found[1] and (not found[2] or tonumber(found[2]) > now)
end

local function keep(id, used)
    local key = at .. 's:' .. id
    local found = call('HMGET', key, 'used', 'ttl', 'expires')
    if not found[1] then return false end
    call('HSET', key, 'used', text(math.max(tonumber(found[1]), used)))
    if found[2] then
        local expires = text(math.max(tonumber(found[3]), used + tonumber(found[2])))
        call('HSET', key, 'expires', expires)
        call('ZADD', at .. 'expiry', expires, id)
    end
    return true
end

local function touch(id) return alive(id) and keep(id, now) end

local function discard_program(session, name)
    local key = at .. 'p:' .. session
    local size = call('HSTRLEN', key, name)
    if call('HDEL', key, name) == 0 then return 0 end
    call('ZREM', at .. 'lapse', session .. '\\n' .. name)
    call('HINCRBY', at .. 'totals', 'programs', -1)
    call('HINCRBY', at .. 'totals', 'bytes', 0 - size)
    return 1
end

local function remove(id)
    call('ZREM', at .. 'expiry', id)
    if call('SREM', at .. 'sessions', id) == 0 then return 0 end
    for _, name in ipairs(call('HKEYS', at .. 'p:' .. id)) do discard_program(id, name) end
    call('DEL', at .. 's:' .. id, at .. 'v:' .. id, at .. 'n:' .. id)
    return 1
end

local function expire_programs()
    for _, member in ipairs(call('ZRANGEBYSCORE', at .. 'lapse', '-inf', text(now))) do
        local cut = string.find(member, '\\n', 1, true)
        discard_program(string.sub(member, 1, cut - 1), string.sub(member, cut + 1))
    end
end

local function there(session, name)
    if session ~= '' and not alive(session) then return false end
    local lapse = call('ZSCORE', at .. 'lapse', session .. '\\n' .. name)
    return not lapse or tonumber(lapse) > now
end

local function over(quota, limit, used, more)
    limit = tonumber(limit)
    if limit >= 0 and used + more > limit then return {'quota', quota, limit, used, more} end
end
"""

# A limit below 0, and an empty TTL, mean none.
_SCRIPTS = {
    "open": """
local id, ttl = ARGV[2], ARGV[3]
if touch(id) then return {'ok', 0, call('HGET', at .. 's:' .. id, 'ttl')} end
remove(id)
local refused = over('max_sessions', ARGV[5], call('SCARD', at .. 'sessions'), 1)
if refused then return refused end
local key = at .. 's:' .. id
call('HSET', key, 'metadata', ARGV[4], 'created', text(now), 'used', text(now), 'entries', 0, 'size', 0, 'writes', 0)
call('SADD', at .. 'sessions', id)
if ttl ~= '' then
    local expires = text(now + tonumber(ttl))
    call('HSET', key, 'ttl', ttl, 'expires', expires)
    call('ZADD', at .. 'expiry', expires, id)
end
return {'ok', 1, ttl}
""",
    "keep": """
local gone = {}
for i = 2, #ARGV, 2 do
    if not keep(ARGV[i], tonumber(ARGV[i + 1])) then gone[#gone + 1] = ARGV[i] end
end
return gone
""",
    "info": "return alive(ARGV[2]) and call('HGETALL', at .. 's:' .. ARGV[2]) or false",
    "sessions": """
local all = {}
for _, id in ipairs(call('SMEMBERS', at .. 'sessions')) do
    if alive(id) then all[#all + 1] = {id, call('HGETALL', at .. 's:' .. id)} end
end
return all
""",
    "remove": "return remove(ARGV[2])",
    "due": "return call('ZRANGEBYSCORE', at .. 'expiry', '-inf', text(now), 'LIMIT', 0, ARGV[2])",
    "expire": """
expire_programs()
local gone = {}
for i = 2, #ARGV do
    if not alive(ARGV[i]) and remove(ARGV[i]) == 1 then gone[#gone + 1] = ARGV[i] end
end
return gone
""",
    "next_expiry": """
local first = {}
for _, name in ipairs({'expiry', 'lapse'}) do
    local found = call('ZRANGE', at .. name, 0, 0, 'WITHSCORES')
    if found[2] then first[#first + 1] = found[2] end
end
return first
""",
    "put": """
local id, key, data, expect = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if not touch(id) then return {'session'} end
local record, values, versions = at .. 's:' .. id, at .. 'v:' .. id, at .. 'n:' .. id
local old = call('HGET', versions, key)
local version = tonumber(old or 0)
if expect >= 0 and expect ~= version then return {'ok', 0} end
local held = call('HMGET', record, 'entries', 'size')
local more_entries, more = 1, #data + #key
if old then more_entries, more = 0, #data - call('HSTRLEN', values, key) end
local refused = over('session_max_entries', ARGV[6], tonumber(held[1]), more_entries)
if not refused and more > 0 then refused = over('session_max_bytes', ARGV[7], tonumber(held[2]), more) end
if refused then return refused end
version = call('HINCRBY', record, 'writes', 1)
call('HSET', values, key, data)
call('HSET', versions, key, version)
call('HINCRBY', record, 'entries', more_entries)
call('HINCRBY', record, 'size', more)
return {'ok', version}
""",
    "read": """
if not touch(ARGV[2]) then return {'session'} end
return {'ok', call('HGET', at .. 'v:' .. ARGV[2], ARGV[3]), call('HGET', at .. 'n:' .. ARGV[2], ARGV[3])}
""",
    "discard": """
local id, key = ARGV[2], ARGV[3]
if not touch(id) then return {'session'} end
local size = call('HSTRLEN', at .. 'v:' .. id, key)
if call('HDEL', at .. 'v:' .. id, key) == 0 then return {'ok', 0} end
call('HDEL', at .. 'n:' .. id, key)
call('HINCRBY', at .. 's:' .. id, 'entries', -1)
call('HINCRBY', at .. 's:' .. id, 'size', -(size + #key))
return {'ok', 1}
""",
    "keys": """
if not touch(ARGV[2]) then return {'session'} end
return {'ok', call('HKEYS', at .. 'v:' .. ARGV[2])}
""",
    "put_program": """
local session, name, data, ttl = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if session ~= '' and not touch(session) then return {'session'} end
local refused = over('program_max_bytes', ARGV[6], 0, #data)
if refused then return refused end
local key = at .. 'p:' .. session
local more_programs, more = 1, #data
if call('HEXISTS', key, name) == 1 then more_programs, more = 0, #data - call('HSTRLEN', key, name) end
local held = call('HMGET', at .. 'totals', 'programs', 'bytes')
refused = over('max_programs', ARGV[7], tonumber(held[1] or 0), more_programs)
if not refused and more > 0 then refused = over('programs_max_bytes', ARGV[8], tonumber(held[2] or 0), more) end
if refused then return refused end
call('HSET', key, name, data)
call('HINCRBY', at .. 'totals', 'programs', more_programs)
call('HINCRBY', at .. 'totals', 'bytes', more)
local member = session .. '\\n' .. name
call('ZREM', at .. 'lapse', member)
if ttl ~= '' then call('ZADD', at .. 'lapse', text(now + tonumber(ttl)), member) end
return {'ok', 1}
""",
    "program": """
local session, name = ARGV[2], ARGV[3]
return there(session, name) and call('HGET', at .. 'p:' .. session, name)
""",
    "discard_program": """
local found = there(ARGV[2], ARGV[3])
return discard_program(ARGV[2], ARGV[3]) == 1 and found and 1 or 0
""",
    "programs": """
local session, all = ARGV[2], {}
if session ~= '' and not alive(session) then return all end
for _, name in ipairs(call('HKEYS', at .. 'p:' .. session)) do
    local lapse = call('ZSCORE', at .. 'lapse', session .. '\\n' .. name)
    if not lapse or tonumber(lapse) > now then
        all[#all + 1] = {name, call('HSTRLEN', at .. 'p:' .. session, name), lapse or ''}
    end
end
return all
""",
}


class RedisTables:
    """The tables of one store; see :class:`snakepit_trio.sessions.sql.SqlTables` for what each method means and raises.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; ``valkey://`` and ``valkeys://`` too.
        limits: What it may hold. Runtimes that share a server should have the same.
        prefix: Begins every key.

    Raises:
        redis.RedisError: The server can't be reached.
        ValueError: The address is none.
    """

    def __init__(self, url: str, limits: Limits, *, prefix: str = PREFIX) -> None:
        self._limits = limits
        self._prefix = prefix
        if url.startswith("valkey"):
            url = "redis" + url.removeprefix("valkey")
        # A script is never sent twice: its first run may have been done, and its answer lost.
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )
        self._scripts = {name: self._redis.register_script(_PRELUDE + body) for name, body in _SCRIPTS.items()}
        try:
            self._redis.ping()
        except BaseException:
            self._redis.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _run(self, name: str, now: float, *arguments: str | bytes | float) -> Any:
        return self._scripts[name](keys=[self._prefix], args=[repr(float(now)), *arguments])

    def _do(self, name: str, session: str | None, now: float, *arguments: str | bytes | float) -> list[Any]:
        """Run a script that may refuse; what it answers after ``ok``."""
        answer: list[Any]
        verdict, *answer = self._run(name, now, session or "", *arguments)
        if verdict == b"session":
            raise session_not_found(session or "")
        if verdict == b"quota":
            quota, limit, used, asked = answer
            raise over_quota(quota.decode(), limit, used, asked)
        return answer

    # ---- sessions ----------------------------------------------------------------------------------

    def open(self, id: str, ttl: float | None, metadata: dict[str, str], now: float) -> tuple[bool, float | None]:
        quota = _limit(self._limits.max_sessions)
        made, life = self._do("open", id, now, _life(ttl), msgspec.json.encode(metadata), quota)
        return bool(made), float(life) if life else None

    def keep(self, uses: list[tuple[str, float]]) -> list[str]:
        return [id.decode() for id in self._run("keep", 0.0, *(part for id, at in uses for part in (id, repr(at))))]

    def info(self, id: str, now: float) -> SessionInfo | None:
        found = self._run("info", now, id)
        return None if found is None else _session(id, found, now)

    def sessions(self, now: float) -> list[SessionInfo]:
        return sorted(
            (_session(id.decode(), found, now) for id, found in self._run("sessions", now)), key=lambda info: info.id
        )

    def remove(self, id: str) -> bool:
        return bool(self._run("remove", 0.0, id))

    def due(self, now: float, most: int) -> list[str]:
        return [id.decode() for id in self._run("due", now, most)]

    def expire(self, ids: list[str], now: float) -> list[str]:
        return [id.decode() for id in self._run("expire", now, *ids)]

    def next_expiry(self) -> float:
        return min(map(float, self._run("next_expiry", 0.0)), default=math.inf)

    # ---- their values --------------------------------------------------------------------------------

    def put(self, id: str, key: str, data: bytes, expect: int | None, now: float) -> int | None:
        limits = self._limits
        quotas = _limit(limits.session_max_entries), _limit(limits.session_max_bytes)
        version: int = self._do("put", id, now, key, data, -1 if expect is None else expect, *quotas)[0]
        return version or None

    def read(self, id: str, key: str, now: float) -> tuple[bytes, int] | None:
        data, version = self._do("read", id, now, key)
        return None if data is None else (data, int(version))

    def discard(self, id: str, key: str, now: float) -> bool:
        return bool(self._do("discard", id, now, key)[0])

    def keys(self, id: str, now: float) -> list[str]:
        return sorted(key.decode() for key in self._do("keys", id, now)[0])

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
        found = [
            ProgramInfo(
                name=name.decode(), session=session, size=size, expires_in=float(lapse) - now if lapse else None
            )
            for name, size, lapse in self._run("programs", now, session or "")
        ]
        return sorted(found, key=lambda info: info.name)


def _limit(value: int | None) -> int:
    return -1 if value is None else value


def _life(ttl: float | None) -> str:
    return "" if ttl is None else repr(float(ttl))


def _session(id: str, flat: list[bytes], now: float) -> SessionInfo:
    record = dict(zip(flat[::2], flat[1::2], strict=True))
    ttl, expires = record.get(b"ttl"), record.get(b"expires")
    return SessionInfo(
        id=id,
        ttl=None if ttl is None else float(ttl),
        metadata=msgspec.json.decode(record[b"metadata"], type=dict[str, str]),
        created_at=float(record[b"created"]),
        used_at=float(record[b"used"]),
        expires_in=None if expires is None else float(expires) - now,
        entries=int(record[b"entries"]),
        size=int(record[b"size"]),
    )
