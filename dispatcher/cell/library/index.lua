-- Checks of the indexes: vectors, flags, open sets, leases, heads, holds, counters against what they index (audit.lua).

do

local MAX_SUMMED = 1000 -- parked entries that are added up in one call
local MAX_SUMMED_BYTES = 4194304
local SUMMED_AT_ONCE = 50
local MAX_COUNTED = 2000 -- places that are counted in one call
local IDS_AT_ONCE = 1000
local MAX_FLEET = 10000 -- instances that are counted in one call, 3 us each

-- What is kept of an instance that is not registered.
local function check_leftover(c, instance)
  local left = {}
  for _, suffix in ipairs({ ':free', ':closed', ':recalled', ':report' }) do
    if redis.call('HEXISTS', key(c, suffix), instance) == 1 then left[#left + 1] = suffix end
  end
  local has_lease = redis.call('ZSCORE', key(c, ':lease'), instance)
  if #left == 0 and not has_lease then return end
  local detail = table.concat(left, ' ') .. (has_lease and ' :lease' or '')
  found(c, 'leftover', 'instance', instance, '', '', detail, function()
    for _, suffix in ipairs(left) do drop(c, suffix, instance) end
    if has_lease then score(c, ':lease', instance, nil) end
  end)
end

-- The empty queue of an instance that is not registered.
function checks.stream(c, instance)
  local queue = key(c, ':q:' .. instance)
  if redis.call('EXISTS', queue) == 0 or redis.call('XLEN', queue) > 0
    or redis.call('HEXISTS', key(c, ':inst'), instance) == 1 then return end
  found(c, 'leftover', 'stream', instance, '', '', ':q', function() c.gone[#c.gone + 1] = { queue } end)
end

-- The flag, and the open sets that follow from it.
local function check_flag(c, instance, record, f)
  local flag = checks.flag(c, instance)
  if f[2] ~= flag then
    local names = { [OPEN] = 'open', [CLOSED] = 'closed', [HELD] = 'held' }
    found(c, 'flag', 'instance', instance, '', '', (names[f[2]] or f[2]) .. ', must be ' .. names[flag], function()
      f[2] = flag
      checks.list(c, instance, record, f)
      touch(c, instance, f)
    end)
  end
  local is_open, wrong = f[2] == OPEN and f[FIRST] > 0, {}
  for _, agent_type in ipairs(record.types) do
    local is_member = redis.call('SISMEMBER', key(c, ':open:' .. agent_type), instance) == 1
    if is_member ~= is_open then wrong[#wrong + 1] = agent_type end
  end
  if #wrong > 0 then
    local what = (is_open and 'missing in ' or 'must not be in ') .. table.concat(wrong, ', ')
    found(c, 'open_set', 'instance', instance, '', '', what, function() checks.list(c, instance, record, f) end)
  end
end

-- The tag, and that the headroom is the share of the slots, rounded down or up.
local function check_head(c, instance, record, f)
  local tag, slots = struct.unpack('<I4', record.epoch), record.capacity.slots
  local is_rounded = math.abs(headroom.beyond(c, f[3], slots)) < 1000
  if f[1] == tag and is_rounded then return end
  found(c, 'vector', 'instance', instance, '', '', 'its tag or headroom is not of its registration', function()
    f[1] = tag
    if not is_rounded then f[3] = headroom.of(c, instance, slots) end
    touch(c, instance, f)
  end)
end

function checks.instance(c, instance)
  local record, is_unreadable = checks.registered(c, instance)
  if is_unreadable then
    found(c, 'unreadable', 'instance', instance, '', '', 'no registration that this version can read')
    return nil
  end
  if not record then return check_leftover(c, instance) end
  if not redis.call('ZSCORE', key(c, ':lease'), instance) then
    found(c, 'lease', 'instance', instance, '', '', 'it has none', function()
      score(c, ':lease', instance, number(c.now + record.lease_ms))
    end)
  end
  local f = free_of(c, instance)
  if not f then return record end -- told with the sums over its queue
  check_head(c, instance, record, f)
  check_flag(c, instance, record, f)
  return record
end

-- A member of an open set that must not be there; whether it serves the type is asked here only.
function checks.open(c, agent_type, instance)
  local record, is_unreadable = checks.registered(c, instance)
  local serves, f = is_unreadable, free_of(c, instance)
  for _, served in ipairs(record and record.types or {}) do serves = serves or served == agent_type end
  if serves and f then return end -- told with the instance
  found(c, 'open_set', 'open', agent_type, instance, '', 'it is not registered for this type', function()
    checks.member(c, ':open:' .. agent_type, instance, false)
  end)
end

-- The first key of a shape, which the heads may tell as an earlier one, and whether its index is listed as waiting.
function checks.shape(c, shape_text)
  local is_read, shape = pcall(shape_of, c, shape_text)
  if not is_read then
    found(c, 'unreadable', 'shape', shape_text, '', '', 'it is no shape')
    return
  end
  local first = redis.call('ZRANGE', key(c, ':park:' .. shape_text), 0, 0, 'WITHSCORES')[2]
  local head = redis.call('ZSCORE', shape.heads, shape_text)
  local is_waiting = redis.call('SISMEMBER', key(c, ':waiting'), shape.index) == 1
  if first and head and tonumber(head) <= tonumber(first) and is_waiting or not first and not head then return end
  local what = 'the park begins at ' .. (first or 'nothing') .. ', told is ' .. (head or 'nothing')
  found(c, 'head', 'shape', shape_text, '', '', what, function()
    score(c, ':heads:' .. shape.index, shape_text, first)
    checks.member(c, ':waiting', shape.index, redis.call('EXISTS', shape.heads) == 1)
  end)
end

-- A head in another index than that of its shape.
function checks.astray(c, index, shape_text)
  local is_read, shape = pcall(shape_of, c, shape_text)
  local is_there = redis.call('ZSCORE', key(c, ':heads:' .. index), shape_text)
  if not is_read or not is_there or shape.index == index then return end
  found(c, 'head', 'astray', index, shape_text, '', 'it belongs to ' .. shape.index, function()
    score(c, ':heads:' .. index, shape_text, nil)
    checks.member(c, ':waiting', index, redis.call('EXISTS', key(c, ':heads:' .. index)) == 1)
  end)
end

-- An index that is listed as waiting and has nothing parked.
function checks.index(c, index)
  if redis.call('SISMEMBER', key(c, ':waiting'), index) == 0
    or redis.call('EXISTS', key(c, ':heads:' .. index)) == 1 then
    return
  end
  found(c, 'head', 'index', index, '', '', 'it is listed as waiting, and nothing of it is parked', function()
    checks.member(c, ':waiting', index, false)
  end)
end

function checks.deadline(c, id)
  local where = redis.call('HGET', key(c, ':where'), id)
  if where and string.sub(where, 1, 2) == 'p|' or not redis.call('ZSCORE', key(c, ':deadlines'), id) then return end
  found(c, 'deadline', 'deadline', id, '', id, 'the task is not parked', function() score(c, ':deadlines', id, nil) end)
end

function checks.hold(c, shape_text, instance)
  local held = redis.call('HGET', key(c, ':held'), instance)
  local hold, f = redis.call('HGET', key(c, ':hold'), shape_text), free_of(c, instance)
  if hold ~= instance and held ~= shape_text then return end
  local is_right = hold == instance and held == shape_text and f and f[2] == HELD
  if is_right and redis.call('EXISTS', key(c, ':park:' .. shape_text)) == 1 then return end
  found(c, 'hold', 'hold', shape_text, instance, '', 'half of it is missing, or nothing is parked', function()
    if hold == instance then drop(c, ':hold', shape_text) end
    if held ~= shape_text then return end
    drop(c, ':held', instance)
    c.held[instance] = false
    local record = checks.registered(c, instance)
    if not record or not f or f[2] ~= HELD then return end
    f[2] = OPEN
    checks.list(c, instance, record, f)
    touch(c, instance, f)
  end)
end

-- What is parked, by the shapes named and all that are listed; nil where it is too much for one call.
local function parked_sums(c, names)
  local seen, count, bytes = {}, 0, 0
  for _, index in ipairs(redis.call('SMEMBERS', key(c, ':waiting'))) do
    for _, shape_text in ipairs(redis.call('ZRANGE', key(c, ':heads:' .. index), 0, MAX_SUMMED)) do
      names[#names + 1] = shape_text
    end
  end
  if #names > MAX_SUMMED then return nil end
  for _, shape_text in ipairs(names) do
    if not seen[shape_text] then
      seen[shape_text] = true
      count = count + redis.call('ZCARD', key(c, ':park:' .. shape_text))
    end
  end
  if count > MAX_SUMMED then return count, nil end
  for shape_text in pairs(seen) do
    for first = 0, MAX_SUMMED, SUMMED_AT_ONCE do
      local rows = redis.call('ZRANGE', key(c, ':park:' .. shape_text), first, first + SUMMED_AT_ONCE - 1)
      for _, entry in ipairs(rows) do bytes = bytes + #entry end
      if bytes > MAX_SUMMED_BYTES then return count, nil end
      if #rows < SUMMED_AT_ONCE then break end
    end
  end
  return count, bytes
end

-- The counters of the park and of what waits. text: shapes that may be parked without being listed, one a line.
function checks.counters(c, text)
  local names = {}
  for shape_text in string.gmatch(text, '[^\n]+') do names[#names + 1] = shape_text end
  local parked, bytes = parked_sums(c, names)
  local sums = { parked = parked, parked_bytes = bytes, later = redis.call('ZCARD', key(c, ':later')) }
  for _, name in ipairs({ 'parked', 'parked_bytes', 'later' }) do
    local told = tonumber(redis.call('HGET', key(c, ':stats'), name) or 0)
    local sum = sums[name]
    if sum and sum ~= told then
      found(c, 'counter', 'counters', text, '', '', name .. ' ' .. told .. ', there are ' .. sum, function()
        add(c, ':stats', name, sum - told)
      end)
    end
  end
end

-- Tell a count of :serving or :unfinished that is not as it was counted.
local function compare(c, kind, at, field, counted)
  local told = tonumber(redis.call('HGET', key(c, ':' .. kind), field) or 0)
  if told == counted then return end
  found(c, kind, kind, field, at, '', told .. ' told, there are ' .. counted, function()
    add(c, ':' .. kind, field, counted - told)
  end)
end

-- How many instances serve each type: all are counted, so only if a walk over them has come to another number.
function checks.serving(c)
  if redis.call('HLEN', key(c, ':inst')) > MAX_FLEET then return end
  local counted, flat = {}, redis.call('HGETALL', key(c, ':serving'))
  for i = 1, #flat, 2 do counted[flat[i]] = 0 end
  for _, instance in ipairs(redis.call('HKEYS', key(c, ':inst'))) do
    local record = checks.registered(c, instance)
    for _, agent_type in ipairs(record and record.types or {}) do
      counted[agent_type] = (counted[agent_type] or 0) + 1
    end
  end
  for agent_type, count in pairs(counted) do compare(c, 'serving', '', agent_type, count) end
end

-- The surplus of the headroom: all instances are counted, under the same condition.
function checks.headroom(c)
  if redis.call('HLEN', key(c, ':inst')) > MAX_FLEET then return end
  local told, counted = headroom.told(c), headroom.count(c)
  if not told or told == counted then return end
  local detail = 'headroom_surplus ' .. told .. ', it is ' .. counted
  found(c, 'counter', 'headroom', '', '', '', detail, function() headroom.store(c, counted) end)
end

-- Count places, as [id, place, ...], by the buckets in which they are unfinished: carried tasks in none.
function checks.count_places(c, flat, counts)
  for first = 1, #flat, IDS_AT_ONCE * 2 do
    local ids = {}
    for i = first, math.min(first + IDS_AT_ONCE * 2, #flat) - 1, 2 do ids[#ids + 1] = flat[i] end
    local carried = redis.call('HMGET', key(c, ':carried'), unpack(ids))
    for n in ipairs(ids) do
      local bucket = not carried[n] and string.match(flat[first + 2 * n - 1], '^.|(%d+)|')
      if bucket then counts[bucket] = (counts[bucket] or 0) + 1 end
    end
  end
end

-- Unfinished tasks by bucket. Few are counted here. Of many the caller has counted one bucket (at: what it counted, and
-- what was told then), which holds if what is told has not moved.
function checks.unfinished(c, bucket, at)
  local counted, told = string.match(at, '^(%d+)|(%-?%d+)$')
  if counted then
    local now = tonumber(redis.call('HGET', key(c, ':unfinished'), bucket) or 0)
    if now == tonumber(told) then compare(c, 'unfinished', at, bucket, tonumber(counted)) end
    return
  end
  if redis.call('HLEN', key(c, ':where')) > MAX_COUNTED then return end
  local counts, flat = {}, redis.call('HGETALL', key(c, ':unfinished'))
  for i = 1, #flat, 2 do counts[flat[i]] = 0 end
  checks.count_places(c, redis.call('HGETALL', key(c, ':where')), counts)
  for of, count in pairs(counts) do compare(c, 'unfinished', '', of, count) end
end

end
