"""Lua scripts for :mod:`.redis_tables`: one script for each method, and so one atomic step of the server."""

from __future__ import annotations

__all__ = ["SCRIPTS"]

# ``KEYS[1]`` is the prefix, ``ARGV[1]`` the time. Numbers are kept as text of 17 digits, which gives a double back exactly.
# Others can write to the server, under whatever key: a row that is not as it is written here is noted in ``odd``, and is not
# there for anybody. ``ask`` gives nil when a key has another type, or holds no number where one belongs.
_PRELUDE = """
local at, now = KEYS[1], tonumber(ARGV[1])
local call, odd = redis.call, {}
local function text(number) return string.format('%.17g', number) end
local function note(kind, name, session) odd[#odd + 1] = {kind, name, session} end

local function ask(...)
    local found = redis.pcall(...)
    if type(found) ~= 'table' or not found.err then return found end
    if string.find(found.err, 'WRONGTYPE', 1, true) or string.find(found.err, 'not an integer', 1, true) then return nil end
    error(found.err, 0)
end

-- A hash that is about to be written to: what else is under its key is in the way.
local function clear(key, kind, name, session)
    if ask('HLEN', key) then return end
    note(kind, name, session)
    call('DEL', key)
end

-- A number as this writes them, and as Python and the server read them too; Lua takes more for one.
local function number(value, pattern)
    local found = value and string.match(value, pattern) and tonumber(value)
    return found and found > -1e300 and found < 1e300 and found
end

-- A session that was written before there were generations has the time of its creation in the place of one.
local function row(id)
    local key = at .. 's:' .. id
    local found = ask('HMGET', key, 'used', 'entries', 'size', 'writes', 'created', 'ttl', 'expires', 'generation')
    local sound = found ~= nil
    local generation = sound and (found[8] or found[5] and 'of ' .. found[5])
    if sound and found[8] and not string.match(found[8], '^[0-9a-z]+$') then sound = false end
    for i = 1, sound and 7 or 0 do
        local whole = i > 1 and i < 5
        local value = number(found[i], whole and '^%-?%d+$' or '^%-?%d+%.?%d*[eE]?[+-]?%d*$')
        if whole and value and math.abs(value) > 1e15 then value = nil end
        if not value and (found[i] or i < 6) then sound = false end
        found[i] = value
    end
    if sound then return {used = found[1], ttl = found[6] or nil, expires = found[7] or nil, generation = generation} end
    if call('EXISTS', key) == 1 then note('session', id) end
    return nil
end

local function alive(id)
    local found = row(id)
    return found ~= nil and (not found.expires or found.expires > now)
end

-- Of the session of this generation; of any, when it is empty.
local function keep(id, used, generation)
    local key, found = at .. 's:' .. id, row(id)
    if not found or (generation ~= '' and generation ~= found.generation) then return false end
    call('HSET', key, 'used', text(math.max(found.used, used)))
    if found.ttl then
        local expires = text(math.max(found.expires or 0, used + found.ttl))
        call('HSET', key, 'expires', expires)
        call('ZADD', at .. 'expiry', expires, id)
    end
    return true
end

local function touch(id, generation) return alive(id) and keep(id, now, generation) end

-- A total that was lost is found anew; by then the tables have changed already.
local function count()
    note('total', 'programs')
    local programs, bytes = 0, 0
    local owners = call('SMEMBERS', at .. 'sessions')
    owners[#owners + 1] = ''
    for _, id in ipairs(owners) do
        for _, blob in ipairs(ask('HVALS', at .. 'p:' .. id) or {}) do
            programs, bytes = programs + 1, bytes + #blob
        end
    end
    call('DEL', at .. 'totals')
    call('HSET', at .. 'totals', 'programs', programs, 'bytes', bytes)
    return {programs, bytes}
end

local function totals()
    local found = ask('HMGET', at .. 'totals', 'programs', 'bytes')
    if not found then return count() end
    for i = 1, 2 do
        found[i] = number(found[i] or '0', '^%-?%d+$')
        if not found[i] then return count() end
    end
    return found
end

local function add(programs, bytes)
    if not ask('HINCRBY', at .. 'totals', 'programs', programs) or not ask('HINCRBY', at .. 'totals', 'bytes', bytes) then
        count()
    end
end

local function discard_program(session, name)
    local key = at .. 'p:' .. session
    call('ZREM', at .. 'lapse', session .. '\\n' .. name)
    local size = ask('HSTRLEN', key, name)
    if not size then note('program', name, session) return 0 end
    if call('HDEL', key, name) == 0 then return 0 end
    add(-1, 0 - size)
    return 1
end

local function remove(id)
    call('ZREM', at .. 'expiry', id)
    local found = call('SREM', at .. 'sessions', id)
    -- Also of a session that is not there: a new one of this id must not find what it left.
    for _, name in ipairs(ask('HKEYS', at .. 'p:' .. id) or {}) do discard_program(id, name) end
    call('DEL', at .. 's:' .. id, at .. 'v:' .. id, at .. 'n:' .. id, at .. 'p:' .. id)
    return found
end

local function expire_programs()
    for _, member in ipairs(call('ZRANGEBYSCORE', at .. 'lapse', '-inf', text(now))) do
        local cut = string.find(member, '\\n', 1, true)
        if cut then
            discard_program(string.sub(member, 1, cut - 1), string.sub(member, cut + 1))
        else
            note('program', member)
            call('ZREM', at .. 'lapse', member)
        end
    end
end

local function there(session, name)
    if session ~= '' and not alive(session) then return false end
    local lapse = call('ZSCORE', at .. 'lapse', session .. '\\n' .. name)
    return not lapse or tonumber(lapse) > now
end

-- What all share: another type under such a key is in everybody's way. Which sessions there are, and when they expire, is found
-- anew; a program whose time is lost lives until it is deleted.
local function check_shared()
    local lost = false
    for name, kind in pairs({sessions = 'set', expiry = 'zset', lapse = 'zset'}) do
        local found = call('TYPE', at .. name).ok
        if found ~= kind and found ~= 'none' then
            note('key', name)
            call('DEL', at .. name)
            lost = lost or name ~= 'lapse'
        end
    end
    local cursor = '0'
    while lost do
        local page = call('SCAN', cursor, 'MATCH', at .. 's:*', 'COUNT', 1000)
        for _, key in ipairs(page[2]) do
            local id = string.sub(key, #at + 3)
            local found = row(id)
            if found then call('SADD', at .. 'sessions', id) end
            if found and found.expires then call('ZADD', at .. 'expiry', text(found.expires), id) end
        end
        cursor = page[1]
        lost = cursor ~= '0'
    end
end

local function over(quota, limit, used, more)
    limit = tonumber(limit)
    if limit >= 0 and used + more > limit then return {'quota', quota, limit, used, more} end
end

local function main()
"""
_END = """
end
check_shared()
local result = main()
return {result == nil and false or result, odd}
"""

# A negative limit and an empty TTL mean none.
_BODIES = {
    "open": """
local id, ttl = ARGV[2], ARGV[3]
if touch(id, ARGV[6]) then return {'ok', 0, call('HGET', at .. 's:' .. id, 'ttl'), row(id).generation} end
if ARGV[7] == '' then return {'session'} end
remove(id)
local refused = over('max_sessions', ARGV[5], call('SCARD', at .. 'sessions'), 1)
if refused then return refused end
local key = at .. 's:' .. id
call('HSET', key, 'metadata', ARGV[4], 'created', text(now), 'used', text(now), 'entries', 0, 'size', 0, 'writes', 0)
call('HSET', key, 'generation', ARGV[7])
call('SADD', at .. 'sessions', id)
if ttl ~= '' then
    local expires = text(now + tonumber(ttl))
    call('HSET', key, 'ttl', ttl, 'expires', expires)
    call('ZADD', at .. 'expiry', expires, id)
end
return {'ok', 1, ttl, ARGV[7]}
""",
    "keep": """
local gone = {}
for i = 2, #ARGV, 3 do
    if not keep(ARGV[i], tonumber(ARGV[i + 2]), ARGV[i + 1]) then gone[#gone + 1] = ARGV[i] end
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
    "remove": """
local found = ARGV[3] ~= '' and row(ARGV[2])
if ARGV[3] ~= '' and not (found and found.generation == ARGV[3]) then return 0 end
return remove(ARGV[2])
""",
    "due": "return call('ZRANGEBYSCORE', at .. 'expiry', '-inf', text(now), 'LIMIT', 0, ARGV[2])",
    "expire": """
expire_programs()
local gone = {}
for i = 2, #ARGV do
    local id = ARGV[i]
    local found = row(id)
    if found and (not found.expires or found.expires > now) then
        -- Used since; or its place among those that expire was not its own.
        if found.expires then call('ZADD', at .. 'expiry', text(found.expires), id) else call('ZREM', at .. 'expiry', id) end
    elseif remove(id) == 1 then
        gone[#gone + 1] = id
    end
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
if not touch(id, ARGV[8]) then return {'session'} end
local record, values, versions = at .. 's:' .. id, at .. 'v:' .. id, at .. 'n:' .. id
clear(values, 'value', key, id)
clear(versions, 'value', key, id)
local old = call('HGET', versions, key)
local version = not old and 0 or number(old, '^%d+$')
if not version then
    note('value', key, id)
    version = 0
end
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
if not touch(ARGV[2], ARGV[4]) then return {'session'} end
local data, version = ask('HGET', at .. 'v:' .. ARGV[2], ARGV[3]), ask('HGET', at .. 'n:' .. ARGV[2], ARGV[3])
if data == nil or version == nil or (data and not number(version, '^%d+$')) then
    note('value', ARGV[3], ARGV[2])
    return {'ok', false, false}
end
return {'ok', data, version}
""",
    "discard": """
local id, key = ARGV[2], ARGV[3]
if not touch(id, ARGV[4]) then return {'session'} end
local size = ask('HSTRLEN', at .. 'v:' .. id, key)
if not size then note('value', key, id) return {'ok', 0} end
if call('HDEL', at .. 'v:' .. id, key) == 0 then return {'ok', 0} end
ask('HDEL', at .. 'n:' .. id, key)
call('HINCRBY', at .. 's:' .. id, 'entries', -1)
call('HINCRBY', at .. 's:' .. id, 'size', -(size + #key))
return {'ok', 1}
""",
    "keys": """
if not touch(ARGV[2], ARGV[3]) then return {'session'} end
local keys = ask('HKEYS', at .. 'v:' .. ARGV[2])
if not keys then note('values', ARGV[2]) end
return {'ok', keys or {}}
""",
    "put_program": """
local session, name, data, ttl = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if session ~= '' and not touch(session, '') then return {'session'} end
local refused = over('program_max_bytes', ARGV[6], 0, #data)
if refused then return refused end
local key = at .. 'p:' .. session
clear(key, 'program', name, session)
local more_programs, more = 1, #data
if call('HEXISTS', key, name) == 1 then more_programs, more = 0, #data - call('HSTRLEN', key, name) end
local held = totals()
refused = over('max_programs', ARGV[7], held[1], more_programs)
if not refused and more > 0 then refused = over('programs_max_bytes', ARGV[8], held[2], more) end
if refused then return refused end
call('HSET', key, name, data)
add(more_programs, more)
local member = session .. '\\n' .. name
call('ZREM', at .. 'lapse', member)
if ttl ~= '' then call('ZADD', at .. 'lapse', text(now + tonumber(ttl)), member) end
return {'ok', 1}
""",
    "program": """
local session, name = ARGV[2], ARGV[3]
if not there(session, name) then return false end
local found = ask('HGET', at .. 'p:' .. session, name)
if found == nil then note('program', name, session) end
return found or false
""",
    "discard_program": """
local found = there(ARGV[2], ARGV[3])
return discard_program(ARGV[2], ARGV[3]) == 1 and found and 1 or 0
""",
    "programs": """
local session, all = ARGV[2], {}
if session ~= '' and not alive(session) then return all end
local names = ask('HKEYS', at .. 'p:' .. session)
if not names then note('programs', session) end
for _, name in ipairs(names or {}) do
    local lapse = call('ZSCORE', at .. 'lapse', session .. '\\n' .. name)
    if not lapse or tonumber(lapse) > now then
        all[#all + 1] = {name, call('HSTRLEN', at .. 'p:' .. session, name), lapse or ''}
    end
end
return all
""",
}

#: The scripts by method name. Each returns the result of its body, and the malformed rows that it found.
SCRIPTS = {name: _PRELUDE + body + _END for name, body in _BODIES.items()}
