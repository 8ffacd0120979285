"""The Lua scripts that Redis runs: the arithmetic of `account`, and records. Each is one atomic operation.

Numbers travel as text with 17 digits, which keeps them exact; Redis would cut off what follows the point.
"""

from __future__ import annotations

_CLOCK = """
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function text(number) return string.format('%.17g', number) end
"""

_ACCOUNT = (
    _CLOCK
    + """
local FIELDS = {'seen', 'arrival', 'admitted', 'delay', 'pushed_at', 'polled_at', 'cool_until', 'probe_until',
  'strikes', 'epoch'}
local now = clock(ARGV[1])
local interval, burst, share, late = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local first_pause, longest_pause, shortest_pause = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local probe_seconds = tonumber(ARGV[9])
local tolerance = (burst - 1) * interval
local drained = tolerance + interval
local found = redis.call('HMGET', KEYS[1], unpack(FIELDS))
local a = {}
for index, field in ipairs(FIELDS) do a[field] = tonumber(found[index]) end
if not a.seen then
  a = {seen = now, arrival = now + drained, admitted = now, delay = 0, pushed_at = now,
    polled_at = now - interval / share, cool_until = now, probe_until = now, strikes = 0, epoch = now}
end

local function void()
  a.arrival = math.min(a.arrival, a.seen + drained)
  a.admitted = math.min(a.admitted, a.arrival)
  a.epoch = math.max(a.seen, a.epoch + 0.000001)
end

local function on_time(expected)
  if a.seen - late <= now and now < a.seen then return end
  local ahead = expected and math.max(expected, a.seen) < now - 3 * late
  if now >= a.seen and not ahead then
    a.seen = now
    return
  end
  local by = now - a.seen
  if now >= a.seen then by = now - expected end
  for _, field in ipairs({'arrival', 'admitted', 'pushed_at', 'polled_at', 'cool_until', 'probe_until'}) do
    a[field] = a[field] + by
  end
  a.seen = now
  void()
end

local function keep(ttl)
  local values = {}
  for _, field in ipairs(FIELDS) do
    values[#values + 1] = field
    values[#values + 1] = text(a[field])
  end
  redis.call('HSET', KEYS[1], unpack(values))
  redis.call('EXPIRE', KEYS[1], ttl)
end
"""
)

TAKE = (
    _ACCOUNT
    + """
local ttl, history = tonumber(ARGV[10]), tonumber(ARGV[11])
local class, within, drain, expected = ARGV[12], tonumber(ARGV[13]), ARGV[14] == '1', tonumber(ARGV[15])
local held_due, held_delay, held_epoch = tonumber(ARGV[16]), tonumber(ARGV[17]), tonumber(ARGV[18])

local function answer(due, reason, held, probe)
  local wait = due - a.seen
  if wait <= 0 then
    wait, reason = 0, 'nothing'
  else
    wait = math.max(wait, 0.001)
  end
  local granted = wait <= within
  keep(ttl)
  if granted and wait == 0 and class ~= 'admission' then
    redis.call('RPUSH', KEYS[2], text(a.seen) .. ' ' .. class)
    redis.call('EXPIRE', KEYS[2], math.ceil(history))
    for _ = 1, 100 do
      local oldest = redis.call('LINDEX', KEYS[2], 0)
      if tonumber(string.match(oldest, '^%S+')) >= a.seen - history then break end
      redis.call('LPOP', KEYS[2])
    end
  end
  return {text(wait), granted and 1 or 0, text(due), held and 1 or 0, probe and 1 or 0, reason, text(a.seen),
    text(a.delay), text(a.epoch)}
end

local function held_slot()
  if not held_due or held_epoch ~= a.epoch then return nil end
  local due, pushed = held_due, 0
  if class == 'command' then pushed = a.delay - held_delay end
  if pushed > 0 then
    due = due + pushed
    if a.pushed_at >= due - interval then due = due - interval end
  end
  if a.seen - due <= late then return due end
  return nil
end

local function place()
  local after = {arrival = math.max(now, a.arrival) + interval}
  local let_in = math.max(now, a.admitted) + interval
  local due = math.max(now, a.arrival - tolerance)
  if class == 'admission' then return math.max(now, a.admitted - tolerance), {admitted = let_in} end
  if class == 'command' then return due, after end
  local free = a.arrival - (math.floor((burst + 1) / 2) - 1) * interval
  local turn = a.polled_at + interval / share
  if math.min(free, turn) > now then return math.min(free, turn), nil end
  if due > now then
    due = due - math.floor((due - now) / interval) * interval
    after.delay = a.delay + interval
    after.pushed_at = now
  end
  after.polled_at = due
  if free > now then after.polled_at = math.max(turn, due - interval) end
  after.admitted = let_in
  return due, after
end

on_time(expected)
now = a.seen
if drain then a.arrival = math.max(a.arrival, now + drained) end
local slot = held_slot()
if slot then return answer(slot, 'the rate limit', true, false) end
if now < a.cool_until then return answer(a.cool_until, 'the server answered 429', false, false) end
if a.strikes > 0 and now < a.probe_until then
  local again = math.min(a.probe_until, now + shortest_pause)
  return answer(again, 'a first request after a 429', false, false)
end
local due, after = place()
local probe = a.strikes > 0 and class ~= 'admission'
if not after then return answer(due, 'commands go first', false, false) end
if probe and due > now then return answer(due, 'the rate limit', false, false) end
if due - now <= within then
  for field, value in pairs(after) do a[field] = value end
  if probe then a.probe_until = now + probe_seconds end
  return answer(due, 'the rate limit', true, probe)
end
return answer(due, 'the rate limit', true, false)
"""
)

COOL = (
    _ACCOUNT
    + """
local ttl, seconds, epoch = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
on_time(nil)
now = a.seen
local asked = seconds or 0
if a.strikes > 0 and (now < a.cool_until or epoch < a.epoch) then
  a.cool_until = math.max(a.cool_until, now + asked)
else
  a.strikes = a.strikes + 1
  local doublings = a.strikes - (seconds and 2 or 1)
  local grown = 0
  if doublings >= 0 then grown = first_pause * 2 ^ math.min(doublings, 16) end
  void()
  a.cool_until = now + math.max(asked, shortest_pause, math.min(grown, longest_pause))
  a.probe_until = now
end
keep(ttl)
return text(a.cool_until - a.seen)
"""
)

SETTLE = """
if tonumber(redis.call('HGET', KEYS[1], 'epoch') or '') == tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'strikes', '0', 'probe_until', redis.call('HGET', KEYS[1], 'seen'))
end
"""

LOOK = (
    _CLOCK
    + """
local fields = {}
for index = 2, #ARGV do fields[#fields + 1] = ARGV[index] end
return {text(clock(ARGV[1])), redis.call('HMGET', KEYS[1], unpack(fields)), redis.call('LRANGE', KEYS[2], 0, -1)}
"""
)

# A record is kept as "when it was written, when it ends, its text"; the times at which records end are also kept apart.
_RECORD = (
    _CLOCK
    + """
local now = clock(ARGV[1])
local function record(kept)
  if not kept then return nil end
  local written, ends, value = string.match(kept, '^(%S+) (%S+) (.*)$')
  if tonumber(ends) <= now then return nil end
  return value, now - tonumber(written)
end
local function drop(name)
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
local function put(name, value, ttl)
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', text(now), 'LIMIT', 0, 100)) do drop(old) end
  redis.call('HSET', KEYS[1], name, text(now) .. ' ' .. text(now + ttl) .. ' ' .. value)
  redis.call('ZADD', KEYS[2], text(now + ttl), name)
  for index = 1, 2 do
    if redis.call('PTTL', KEYS[index]) < ttl * 1000 then redis.call('PEXPIRE', KEYS[index], math.ceil(ttl * 1000)) end
  end
end
"""
)

GET = (
    _RECORD
    + """
local value, age = record(redis.call('HGET', KEYS[1], ARGV[2]))
if value then return {value, text(age)} end
return false
"""
)

PUT = (
    _RECORD
    + """
put(ARGV[2], ARGV[3], tonumber(ARGV[4]))
"""
)

# ARGV: clock, name, time to live, whether a value is expected, which, whether to write a value, which.
SWAP = (
    _RECORD
    + """
local found = record(redis.call('HGET', KEYS[1], ARGV[2]))
local expected, value = nil, nil
if ARGV[4] == '1' then expected = ARGV[5] end
if found == expected then
  if ARGV[6] == '1' then put(ARGV[2], ARGV[7], tonumber(ARGV[3])) else drop(ARGV[2]) end
end
return found or false
"""
)

DROP = """
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
"""

ENTRIES = (
    _RECORD
    + """
local names, all = {}, redis.call('HGETALL', KEYS[1])
local result = {}
for index = 1, #all, 2 do
  if string.sub(all[index], 1, #ARGV[2]) == ARGV[2] then
    local value, age = record(all[index + 1])
    if value then result[#result + 1] = {all[index], value, text(age)} end
  end
end
return result
"""
)

RING = """
local count = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return count
"""
