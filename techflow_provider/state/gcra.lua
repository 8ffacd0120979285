-- `Reserve` of budget_state.py with the arithmetic of gcra.py, for Redis.
-- KEYS: the namespace's entries, and when each expires. ARGV: the entry's name, the time as JSON (null: the server's
-- clock counts), the entry's time to live, and the change as a JSON object. Returns the result as a JSON object.
-- Numbers are written with 17 digits, which keeps them exact.

local FIELDS = {'updated_at', 'tat', 'tokens', 'tokens_at', 'admission_tat', 'admission_pushback_seconds', 'admitted',
  'pushback_seconds', 'pushed_at', 'polled_at', 'cool_until', 'probe_until', 'consecutive_429', 'epoch'}
local LEARNED_FIELDS = {'burst', 'burst_until', 'plateau', 'plateau_at', 'reduced_at', 'reductions', 'quota_interval',
  'quota_until', 'stated'}
local MOVING_FIELDS = {'tat', 'tokens_at', 'admission_tat', 'pushed_at', 'polled_at', 'cool_until', 'probe_until'}
local LEARNED_TIMES = {'burst_until', 'plateau_at', 'reduced_at', 'quota_until'}
local MINUTE_SECONDS, HISTORY_SECONDS, SLICE_SECONDS, SHORTEST_WAIT_SECONDS, JUMPS = 60, 600, 10, 0.001, 3
local WINDOW_SECONDS, LATE_SECONDS, SHORTEST_COOL_DOWN_SECONDS, PROBE_SECONDS, POLL_SHARE = 61.501, 1, 1, 30, 0.2
local LONGEST_SECONDS, ROUNDING, GROWTH, LOWEST_SHARE, RETURN_SECONDS = 30 * 24 * 3600, 1e-6, 0.01, 0.002, 10

local name, clock, ttl_seconds = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local change = cjson.decode(ARGV[4])
local policy, request = change.policy, change.request
if not clock then
  local time = redis.call('TIME')
  clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- JSON's null is a value of its own in Lua.
local function given(value)
  if value ~= cjson.null then return value end
end

local function number(value) return string.format('%.17g', value) end

local function pairs_of(fields, values)
  local parts = {}
  for index, field in ipairs(fields) do parts[index] = string.format('"%s":%s', field, number(values[field])) end
  return table.concat(parts, ',')
end

local object
function object(fields)
  local parts = {}
  for field, value in pairs(fields) do
    local text = type(value) == 'number' and number(value) or type(value) == 'table' and object(value)
    parts[#parts + 1] = string.format('"%s":%s', field, text or cjson.encode(value))
  end
  return '{' .. table.concat(parts, ',') .. '}'
end

-- What is kept.

local function are_finite(values, fields)
  if type(values) ~= 'table' then return false end
  for _, field in ipairs(fields) do
    local value = values[field]
    if type(value) ~= 'number' or value ~= value or math.abs(value) == math.huge then return false end
  end
  return true
end

local function are_near(values, fields, now)
  for _, field in ipairs(fields) do
    if math.abs(values[field] - now) > LONGEST_SECONDS then return false end
  end
  return true
end

local function is_state(value)
  if not are_finite(value, FIELDS) or type(value.grants) ~= 'string' then return false end
  local learned, released, positions = value.learned, value.released, {}
  if not are_finite(learned, LEARNED_FIELDS) or type(learned.cause) ~= 'string' then return false end
  if type(released) ~= 'table' then return false end
  for index = 1, #released do positions[index] = index end
  return are_finite(released, positions)
    and are_near(value, MOVING_FIELDS, value.updated_at) and are_near(value, {'epoch'}, value.updated_at)
    and are_near(learned, LEARNED_TIMES, value.updated_at)
    and 0 <= value.tokens and value.tokens <= learned.burst and learned.burst >= 1
    and 0 < learned.plateau and learned.plateau <= 1
    and math.min(value.admitted, value.consecutive_429, learned.reductions, learned.quota_interval, learned.stated) >= 0
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
  local expires, released = clock + ttl_seconds, {}
  for index, slot in ipairs(state.released) do released[index] = number(slot) end
  local text = string.format('{%s,"learned":{%s,"cause":%s},"released":[%s],"grants":%s}', pairs_of(FIELDS, state),
    pairs_of(LEARNED_FIELDS, state.learned), cjson.encode(state.learned.cause), table.concat(released, ','),
    cjson.encode(state.grants))
  redis.call('HSET', KEYS[1], name, number(clock) .. ' ' .. number(expires) .. ' ' .. text)
  redis.call('ZADD', KEYS[2], number(expires), name)
  for index = 1, 2 do
    if redis.call('PTTL', KEYS[index]) < ttl_seconds * 1000 then
      redis.call('PEXPIRE', KEYS[index], math.ceil(ttl_seconds * 1000))
    end
  end
end

-- Returns the counts with one more request, and how many requests were sent in the last minute.
local function count(grants, at, class)
  local now, sent = math.floor(at + 0.5), 0
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
  for index, grant in ipairs(merged) do
    if -1 <= at - grant[1] and at - grant[1] < MINUTE_SECONDS then sent = sent + grant[2] + grant[3] end
    merged[index] = string.format('%.0f:%.0f:%.0f', unpack(grant))
  end
  return table.concat(merged, ' '), sent
end

-- The arithmetic.

local found, discarded = read()

-- Returns the interval that a burst leaves of a share of the limit.
local function interval_of(burst, share)
  local limit = policy.limit * share
  local kept = math.max(1, math.floor(math.min(burst, policy.burst, math.floor(limit / 2))))
  return WINDOW_SECONDS / math.max(limit - kept, math.min(1, limit))
end

local function empty()
  local interval = interval_of(1, 1)
  return {updated_at = clock, tat = clock + interval, tokens = 0, tokens_at = clock, admission_tat = clock,
    admission_pushback_seconds = 0, admitted = 0, pushback_seconds = 0, pushed_at = clock,
    polled_at = clock - interval / POLL_SHARE, cool_until = clock, probe_until = clock, consecutive_429 = 0,
    epoch = clock, released = {}, grants = '',
    learned = {burst = 1, burst_until = clock, plateau = 1, plateau_at = clock, reduced_at = clock, reductions = 0,
      quota_interval = 0, quota_until = clock, stated = 0, cause = 'nothing'}}
end

local state = found or empty()
local learned = state.learned

local function share()
  local x = (state.updated_at - learned.plateau_at) / MINUTE_SECONDS
  return math.max(LOWEST_SHARE, math.min(1, learned.plateau * (1 + GROWTH * x * x * x)))
end

local function present_interval()
  local steady = state.tokens == 0 and state.updated_at - state.tokens_at >= WINDOW_SECONDS
  return interval_of(steady and 1 or learned.burst, share())
end

local function interval_after(due)
  local interval = present_interval()
  if due < learned.quota_until then return math.max(interval, learned.quota_interval) end
  return interval
end

local function void()
  local interval = present_interval()
  state.tat = math.min(state.tat, state.updated_at + interval)
  state.admission_tat = math.min(state.admission_tat, state.tat)
  state.epoch = math.max(state.updated_at, state.epoch + 0.000001)
  state.released = {}
end

local function move_to(now, expected)
  if state.updated_at - LATE_SECONDS <= now and now < state.updated_at then return end
  local ahead = expected and math.max(expected, state.updated_at) < now - JUMPS * LATE_SECONDS
  if now >= state.updated_at and not ahead then
    state.updated_at = now
    return
  end
  local by = now - state.updated_at
  if now >= state.updated_at then by = now - expected end
  for _, field in ipairs(MOVING_FIELDS) do state[field] = state[field] + by end
  for _, field in ipairs(LEARNED_TIMES) do learned[field] = learned[field] + by end
  state.updated_at = now
  void()
end

local used_at = state.updated_at
move_to(clock, given(request.expected))
local now = state.updated_at
local class, earlier, within = request.request_class, given(request.earlier), request.within_seconds
-- The texts of Reason in gcra.py.
local NONE, LIMIT, COMMANDS = 'nothing', 'the rate limit', 'commands go first'
local COOL_DOWN, PROBE = 'the cool-down after a 429', 'the first request after a 429'

local function usage(sent)
  local part = share()
  local others = learned.cause == 'responses show that somebody else uses the key' and policy.limit * (1 - part) or 0
  return {limit = policy.limit, share = part,
    interval_seconds = interval_after(now), sent = sent, stated = learned.stated, others = others}
end

local function pushback()
  return class == 'admission' and state.admission_pushback_seconds or state.pushback_seconds
end

local function reservation(due, reason, is_held, is_probe, in_burst)
  local wait = due - now
  if wait <= 0 then
    wait, reason = 0, NONE
  else
    wait = math.max(wait, SHORTEST_WAIT_SECONDS)
  end
  local result = {wait_seconds = wait, granted = wait <= within, due = due, held = is_held, probe = is_probe,
    reason = reason, at = now, pushback_seconds = pushback(), epoch = state.epoch, in_burst = in_burst or false,
    discarded = discarded}
  if result.granted and wait == 0 and class == 'admission' then
    state.admitted = state.admitted + 1
  elseif result.granted and wait == 0 then
    local sent
    state.grants, sent = count(state.grants, now, class)
    if learned.stated ~= 0 then result.usage = usage(sent) end
  end
  keep(state)
  return object(result)
end

local function held_slot()
  if not (earlier and earlier.held and earlier.granted) or earlier.epoch ~= state.epoch then return nil end
  local due, pushed = earlier.due, pushback() - earlier.pushback_seconds
  if class == 'admission' then
    due = due + math.min(pushed, (due - earlier.at) / 2)
  elseif class == 'command' and pushed > 0 then
    due = due + pushed
    local interval = present_interval()
    if state.pushed_at >= due - interval then due = due - interval end
  end
  if now - due <= LATE_SECONDS then return due end
  return nil
end

-- What is changed once the slot is taken.
local after = {}

local function value(field)
  if after[field] ~= nil then return after[field] end
  return state[field]
end

local function refill()
  local interval = present_interval()
  local gained = math.floor((now - state.tat) / interval + ROUNDING)
  if gained < 1 then return end
  local grows = state.tokens == 0 and learned.burst <= gained and learned.burst < policy.burst
    and now >= learned.burst_until
  after.burst = math.min(learned.burst + (grows and 1 or 0), policy.burst)
  after.tokens = math.min(after.burst - 1, state.tokens + gained)
  if after.tokens > 0 then after.tokens_at = now end
end

-- Runs a function on the state as it is once the slot is taken.
local function with_after(act)
  local before = {tokens = state.tokens, tokens_at = state.tokens_at, burst = learned.burst}
  state.tokens, state.tokens_at, learned.burst = value('tokens'), value('tokens_at'), after.burst or learned.burst
  local result, further = act()
  state.tokens, state.tokens_at, learned.burst = before.tokens, before.tokens_at, before.burst
  return result, further
end

local function take()
  if value('tokens') > 0 then
    after.tokens_at = now
    if state.tat > now then
      after.tokens = value('tokens') - 1
      return now
    end
  end
  local due = math.max(now, state.tat)
  after.tat = due + with_after(function() return interval_after(due) end)
  return due
end

local function put_off()
  local interval = with_after(present_interval)
  after.admission_tat = math.max(now, state.admission_tat) + interval
  after.admission_pushback_seconds = state.admission_pushback_seconds + interval
end

local function came()
  if state.admitted > 0 then after.admitted = state.admitted - 1 else put_off() end
end

local function take_released()
  local left = {}
  for _, slot in ipairs(state.released) do
    if slot + state.pushback_seconds >= now then left[#left + 1] = slot end
  end
  if #left == 0 or now >= state.tat then return nil end
  local due = table.remove(left, 1) + state.pushback_seconds
  after.released = left
  return due
end

-- Returns when the next slot is, and whether it can be had; otherwise, when to ask again.
local function place()
  if class == 'admission' then
    local interval = present_interval()
    after.admission_tat = math.max(now, state.admission_tat) + interval
    return math.max(now, state.admission_tat - (policy.burst - 1) * interval), true
  end
  refill()
  if class == 'command' then
    local released = take_released()
    if released then return released, true end
    local due = take()
    came()
    return due, true
  end
  local interval, burst = with_after(function() return interval_after(now) end), after.burst or learned.burst
  local reserved = math.floor(math.min(policy.burst, burst + (now >= learned.burst_until and 1 or 0)) / 2)
  local free, turn = now, state.polled_at + interval / POLL_SHARE
  if value('tokens') <= reserved then free = state.tat + (reserved - value('tokens')) * interval end
  if math.min(free, turn) > now then return math.min(free, turn), false end
  local due = take()
  if due > now then
    due = due - math.floor((due - now) / interval) * interval
    after.pushback_seconds = state.pushback_seconds + interval
    after.pushed_at = now
  end
  after.polled_at = due
  if free > now then after.polled_at = math.max(turn, due - interval) end
  put_off()
  return due, true
end

-- Only what takes the place of Redis is given a share of less than 1.
if given(request.assumed_share) then
  state.tokens, state.tokens_at = 0, now
  local wait = now - used_at >= RETURN_SECONDS and RETURN_SECONDS or 0
  state.tat = math.max(state.tat, now + math.max(wait, present_interval()))
end
local slot = held_slot()
if slot then
  if class ~= 'admission' then within = math.huge end
  return reservation(slot, LIMIT, true, false)
end
if now < state.cool_until then return reservation(state.cool_until, COOL_DOWN, false, false) end
local probing = state.consecutive_429 > 0
if probing and now < state.probe_until then
  return reservation(math.min(state.probe_until, now + SHORTEST_COOL_DOWN_SECONDS), PROBE, false, false)
end
local due, has_slot = place()
local probe = probing and class ~= 'admission'
if not has_slot then return reservation(due, COMMANDS, false, false) end
if probe and due > now then return reservation(due, LIMIT, false, false) end
if due - now > within then
  after = {}
  if class == 'command' then came() end
  for field, changed in pairs(after) do state[field] = changed end
  return reservation(due, LIMIT, true, false)
end
local in_burst = value('tokens') < state.tokens
for field, changed in pairs(after) do
  if field == 'burst' then learned.burst = changed else state[field] = changed end
end
if probe then state.probe_until = now + PROBE_SECONDS end
return reservation(due, LIMIT, true, probe, in_burst)
