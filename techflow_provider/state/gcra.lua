-- The changes of budget_state.py with the arithmetic of gcra.py, for Redis.
-- KEYS: the namespace's entries, and when each expires. ARGV: the entry's name, the time as JSON (null: the server's
-- clock counts), the entry's time to live, and the change as a JSON object. Returns the result as a JSON object.
-- Numbers are written with 17 digits, which keeps them exact.

local FIELDS = {'updated_at', 'tat', 'admission_tat', 'pushback_seconds', 'pushed_at', 'polled_at', 'cool_until',
  'probe_until', 'consecutive_429', 'epoch'}
local MINUTE_SECONDS, HISTORY_SECONDS, SLICE_SECONDS, SHORTEST_WAIT_SECONDS, JUMPS = 60, 600, 10, 0.001, 3

local name, clock, ttl_seconds = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local change = cjson.decode(ARGV[4])
local operation, policy = change.change, change.policy
if not clock then
  local time = redis.call('TIME')
  clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function number(value) return string.format('%.17g', value) end

local function object(fields)
  local parts = {}
  for field, value in pairs(fields) do
    parts[#parts + 1] = string.format('"%s":%s', field, type(value) == 'number' and number(value) or cjson.encode(value))
  end
  return '{' .. table.concat(parts, ',') .. '}'
end

-- What is kept.

local function is_finite(value)
  return type(value) == 'number' and value == value and math.abs(value) ~= math.huge
end

local function is_state(value)
  if type(value) ~= 'table' or type(value.grants) ~= 'string' then return false end
  for _, field in ipairs(FIELDS) do
    if not is_finite(value[field]) then return false end
  end
  return true
end

-- Returns the present state, and whether one that can't be read was found.
local function read()
  local kept = redis.call('HGET', KEYS[1], name)
  if not kept then return nil, false end
  local _, expires, text = string.match(kept, '^(%S+) (%S+) (.*)$')
  if tonumber(expires) and tonumber(expires) <= clock then return nil, false end
  local readable, value = pcall(cjson.decode, text)
  if readable and is_state(value) then return value, false end
  return nil, true
end

local function keep(state)
  local parts, expires = {}, clock + ttl_seconds
  for index, field in ipairs(FIELDS) do parts[index] = string.format('"%s":%s', field, number(state[field])) end
  local text = '{' .. table.concat(parts, ',') .. ',"grants":' .. cjson.encode(state.grants) .. '}'
  redis.call('HSET', KEYS[1], name, number(clock) .. ' ' .. number(expires) .. ' ' .. text)
  redis.call('ZADD', KEYS[2], number(expires), name)
  for index = 1, 2 do
    if redis.call('PTTL', KEYS[index]) < ttl_seconds * 1000 then
      redis.call('PEXPIRE', KEYS[index], math.ceil(ttl_seconds * 1000))
    end
  end
end

local function count(grants, at, class)
  local now = math.floor(at + 0.5)
  local merged = {}
  local function add(second, commands, polls)
    local last = merged[#merged]
    if last and last[1] == second then
      last[2], last[3] = last[2] + commands, last[3] + polls
    else
      merged[#merged + 1] = {second, commands, polls}
    end
  end
  for second, commands, polls in string.gmatch(grants, '(%-?%d+):(%d+):(%d+)') do
    second = tonumber(second)
    local slice_end = second - second % SLICE_SECONDS + SLICE_SECONDS
    if now - HISTORY_SECONDS <= second and second <= now then
      if slice_end <= now - MINUTE_SECONDS then second = slice_end - SLICE_SECONDS / 2 end
      add(second, tonumber(commands), tonumber(polls))
    end
  end
  add(now, class == 'command' and 1 or 0, class == 'command' and 0 or 1)
  for index, grant in ipairs(merged) do merged[index] = string.format('%.0f:%.0f:%.0f', unpack(grant)) end
  return table.concat(merged, ' ')
end

-- The arithmetic.

local found, discarded = read()

if operation == 'Settle' then
  if found and found.epoch == change.epoch then
    found.consecutive_429, found.probe_until = 0, found.updated_at
    keep(found)
  end
  return '{}'
end

local interval, burst = policy.rate.interval_seconds, policy.rate.burst
local tolerance = (burst - 1) * interval
local exhausted = tolerance + interval
local state = found or {updated_at = clock, tat = clock + exhausted, admission_tat = clock, pushback_seconds = 0,
  pushed_at = clock, polled_at = clock - interval / policy.poll_share, cool_until = clock, probe_until = clock,
  consecutive_429 = 0, epoch = clock, grants = ''}

local function void()
  state.tat = math.min(state.tat, state.updated_at + exhausted)
  state.admission_tat = math.min(state.admission_tat, state.tat)
  state.epoch = math.max(state.updated_at, state.epoch + 0.000001)
end

local function move_to(now, expected)
  if state.updated_at - policy.late_seconds <= now and now < state.updated_at then return end
  local ahead = expected and math.max(expected, state.updated_at) < now - JUMPS * policy.late_seconds
  if now >= state.updated_at and not ahead then
    state.updated_at = now
    return
  end
  local by = now - state.updated_at
  if now >= state.updated_at then by = now - expected end
  for _, field in ipairs({'tat', 'admission_tat', 'pushed_at', 'polled_at', 'cool_until', 'probe_until'}) do
    state[field] = state[field] + by
  end
  state.updated_at = now
  void()
end

-- JSON's null is a value of its own in Lua.
local function given(value)
  if value ~= cjson.null then return value end
end

local request = change.request or {}
move_to(clock, given(request.expected))
local now = state.updated_at

if operation == 'CoolDown' then
  local seconds = given(change.seconds)
  local requested = seconds or 0
  if state.consecutive_429 > 0 and (now < state.cool_until or change.epoch < state.epoch) then
    state.cool_until = math.max(state.cool_until, now + requested)
  else
    state.consecutive_429 = state.consecutive_429 + 1
    local doublings, grown = state.consecutive_429 - (seconds and 2 or 1), 0
    if doublings >= 0 then grown = policy.first_cool_down_seconds * 2 ^ math.min(doublings, 16) end
    void()
    state.cool_until = now + math.max(requested, policy.shortest_cool_down_seconds,
      math.min(grown, policy.longest_cool_down_seconds))
    state.probe_until = now
  end
  keep(state)
  return string.format('{"result":%s,"discarded":%s}', number(state.cool_until - now), tostring(discarded))
end

local class, earlier, within = request.request_class, given(request.earlier), request.within_seconds

-- The texts of Reason in gcra.py.
local NONE, LIMIT, COMMANDS = 'nothing', 'the rate limit', 'commands go first'
local COOL_DOWN, PROBE = 'the cool-down after a 429', 'the first request after a 429'

local function reservation(due, reason, is_held, is_probe)
  local wait = due - now
  if wait <= 0 then
    wait, reason = 0, NONE
  else
    wait = math.max(wait, SHORTEST_WAIT_SECONDS)
  end
  local granted = wait <= within
  if granted and wait == 0 and class ~= 'admission' then state.grants = count(state.grants, now, class) end
  keep(state)
  local result = object({wait_seconds = wait, granted = granted, due = due, held = is_held, probe = is_probe,
    reason = reason, at = now, pushback_seconds = state.pushback_seconds, epoch = state.epoch})
  return string.format('{"result":%s,"discarded":%s}', result, tostring(discarded))
end

local function held_slot()
  if not (earlier and earlier.held and earlier.granted) or earlier.epoch ~= state.epoch then return nil end
  local due, pushed = earlier.due, 0
  if class == 'command' then pushed = state.pushback_seconds - earlier.pushback_seconds end
  if pushed > 0 then
    due = due + pushed
    if state.pushed_at >= due - interval then due = due - interval end
  end
  if now - due <= policy.late_seconds then return due end
  return nil
end

-- Returns when the next slot is and what taking it changes; or when to ask again, and nil.
local function place()
  local after = {tat = math.max(now, state.tat) + interval}
  local admitted = math.max(now, state.admission_tat) + interval
  local due = math.max(now, state.tat - tolerance)
  if class == 'admission' then return math.max(now, state.admission_tat - tolerance), {admission_tat = admitted} end
  if class == 'command' then return due, after end
  local free = state.tat - (math.floor((burst + 1) / 2) - 1) * interval
  local turn = state.polled_at + interval / policy.poll_share
  if math.min(free, turn) > now then return math.min(free, turn), nil end
  if due > now then
    due = due - math.floor((due - now) / interval) * interval
    after.pushback_seconds = state.pushback_seconds + interval
    after.pushed_at = now
  end
  after.polled_at = due
  if free > now then after.polled_at = math.max(turn, due - interval) end
  after.admission_tat = admitted
  return due, after
end

if request.assume_spent then state.tat = math.max(state.tat, now + exhausted) end
local slot = held_slot()
if slot then return reservation(slot, LIMIT, true, false) end
if now < state.cool_until then return reservation(state.cool_until, COOL_DOWN, false, false) end
local probing = state.consecutive_429 > 0
if probing and now < state.probe_until then
  return reservation(math.min(state.probe_until, now + policy.shortest_cool_down_seconds), PROBE, false, false)
end
local due, after = place()
local probe = probing and class ~= 'admission'
if not after then return reservation(due, COMMANDS, false, false) end
if probe and due > now then return reservation(due, LIMIT, false, false) end
if due - now > within then return reservation(due, LIMIT, true, false) end
for field, value in pairs(after) do state[field] = value end
if probe then state.probe_until = now + policy.probe_seconds end
return reservation(due, LIMIT, true, probe)
