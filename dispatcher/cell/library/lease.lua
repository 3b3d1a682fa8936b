-- Instances: register, beat, close, leave, cordon, evict. An instance is its lease, its epoch and its vector.

local AWAY_MS = 1000 -- no evict for longer: no dispatcher reached the cell, so workers may not have reached it either
local SPARE_MS = 10000 -- time for them to beat again; their own backoff has a cap of half of it
local MAX_PAGE = 4000 -- of one call, whatever its argument says
local PAGE = 200 -- entries taken back in one call, so that evicting a big instance does not block the others

-- Nothing more is placed on the instance, or it is open again; the open sets follow in write_free.
local function set_flag(c, instance, flag)
  local f = free_of(c, instance)
  if not f or f[2] == flag then return end
  if f[2] == HELD then
    local shape = held_for(c, instance)
    if shape then release(c, shape, instance) end
  end
  f[2] = flag
  touch(c, instance, f)
end

-- Nothing is left on the instance: forget it.
local function forget_instance(c, instance)
  headroom.leave(c, instance)
  for _, agent_type in ipairs(instance_of(c, instance).types) do add(c, ':serving', agent_type, -1) end
  for _, suffix in ipairs({ ':free', ':closed', ':recalled', ':report', ':inst' }) do drop(c, suffix, instance) end
  score(c, ':lease', instance, nil)
  redis.call('DEL', key(c, ':q:' .. instance))
  c.inst[instance], c.free[instance] = nil, nil
end

-- An entry goes from the instance's queue to its next place; the caller deletes it from there.
local function leave_queue(c, instance, entry, reason, started)
  local head = read_head(entry)
  undo(c, was_at, head.id, redis.call('HGET', key(c, ':where'), head.id))
  give(c, instance, shape_of(c, head.shape))
  again(c, entry, instance, reason, 0, started)
end

-- Take back up to `limit` entries of the instance, oldest first. Entries up to the reported cursor have been read, so
-- their attempt counts. Returns how many are left; at 0 the instance is gone. Once begun it is not undone: the lease
-- is set to have run out, so that evict goes on whoever began. Two steps: a page of entries, then the instance itself.
local function take_back(c, instance, limit, reason)
  set_flag(c, instance, CLOSED)
  write_free(c) -- at once: what is taken back must not be placed here again
  put(c, ':closed', instance, LEAVING)
  score(c, ':lease', instance, 0)
  local queue = key(c, ':q:' .. instance)
  local report = redis.call('HGET', key(c, ':report'), instance)
  local cursor = report and cmsgpack.unpack(string.sub(report, 9))[1] or '0-0'
  local rows, gone = redis.call('XRANGE', queue, '-', '+', 'COUNT', limit), {}
  for i, row in ipairs(rows) do
    gone[i] = row[1]
    local started = nil
    if is_up_to(row[1], cursor) then started = true end
    leave_queue(c, instance, row[2][2], reason, started)
  end
  local left = redis.call('XLEN', queue) - #gone
  finish_call(c)
  if #gone > 0 then redis.call('XDEL', queue, unpack(gone)) end
  commit(c)
  if left == 0 then
    forget_instance(c, instance)
    commit(c)
  end
  return left
end

-- Open the instance again; it pulls.
local function reopen(c, instance)
  drop(c, ':closed', instance)
  set_flag(c, instance, OPEN)
  pull(c, instance, PAGE, 'g')
end

-- Whether entries of the instance are being taken back.
local function is_leaving(c, instance)
  return redis.call('HGET', key(c, ':closed'), instance) == LEAVING
end

-- Workers may be of any make. What is stored is read by every dispatcher, so what is not of the form is refused here.
local function is_name(value)
  return type(value) == 'string' and #value > 0 and #value <= 512 and not string.find(value, '[|=,%c]')
end

local function are_names(values, is_right)
  if type(values) ~= 'table' then return false end
  for name, value in pairs(values) do
    if not is_name(name) or not is_right(value) then return false end
  end
  return true
end

local function are_texts(values)
  if type(values) ~= 'table' then return false end
  for _, value in pairs(values) do
    if type(value) ~= 'string' then return false end
  end
  return true
end

local function is_units(value)
  return type(value) == 'number' and value >= 0 and value <= 2147483647 and value == math.floor(value)
end

local function check_offer(instance, offered)
  local epoch, types, capacity, labels, lease_ms = unpack(offered, 1, 5)
  local is_right = is_name(instance) and type(types) == 'table' and #types > 0 and are_names(capacity, is_units)
    and are_names(labels, is_name) and is_units(lease_ms) and are_texts(offered[6])
  local named = {}
  for _, agent_type in ipairs(is_right and types or {}) do
    is_right = is_right and is_name(agent_type) and not named[agent_type]
    named[agent_type or ''] = true
  end
  if not is_right then error('not an instance\'s id, types, capacity, labels, lease and profile') end
  if not capacity.slots or type(epoch) ~= 'string' or not string.find(epoch, '^[%w._-][%w._-][%w._-][%w._-]+$') then
    error('an instance has slots, and an epoch of at least four characters, letters, digits and . _ -')
  end
end

-- The vector of an instance all of whose capacity is free, without headroom. Checks before it adds: the names of
-- resources stay for good.
local function vector_of(c, epoch, capacity)
  local names, added = {}, 0
  for name in pairs(capacity) do
    names[#names + 1] = name
    if not resource_index(c, name, false) then added = added + 1 end
  end
  if c.res_count + added > MAX_RESOURCES then error('more than ' .. MAX_RESOURCES .. ' resource names in this cell') end
  table.sort(names)
  local f = { (struct.unpack('<I4', epoch)), OPEN, 0, false, false, false }
  for _, name in ipairs(names) do f[FIRST - 1 + resource_index(c, name, true)] = capacity[name] end
  for index = 1, c.res_count do f[FIRST - 1 + index] = f[FIRST - 1 + index] or 0 end
  return f
end

-- register: KEYS[1] root; ARGV instance, MessagePack [epoch, types, capacity, labels, lease_ms, profile], 1 if it is
-- resuming: it stays closed until it has told all that it runs (resync)
-- reply: ok, generation, now, cursor | evicting, left (an earlier registration is still being taken back: call again)
-- Repeating it with the same epoch renews the lease and changes nothing else. Pulls.
local function register(c, args)
  local instance, offered = args[1], cmsgpack.unpack(args[2])
  check_offer(instance, offered)
  local epoch, types, capacity = offered[1], offered[2], offered[3]
  local before = instance_of(c, instance)
  if before and before.epoch == epoch and not is_leaving(c, instance) then
    score(c, ':lease', instance, number(c.now + before.lease_ms))
    return { 'ok', meta(c, 'generation') or '', c.now, '0-0' }
  end
  local f = vector_of(c, epoch, capacity) -- first: a shape may need a resource that it adds
  if before then
    local left = take_back(c, instance, PAGE, 'the instance registered anew')
    if left > 0 then return { 'evicting', left } end
  end
  f[3] = headroom.assign(c, instance, capacity.slots)
  put(c, ':inst', instance, struct.pack('<d', c.now) .. args[2])
  score(c, ':lease', instance, number(c.now + offered[5]))
  for _, agent_type in ipairs(types) do
    add(c, ':serving', agent_type, 1)
    drop(c, ':unserved', agent_type)
  end
  c.inst[instance] = {
    epoch = epoch, types = types, capacity = capacity, labels = offered[4], lease_ms = offered[5],
    indexes = indexes_of(types),
  }
  c.free[instance] = f
  touch(c, instance, f)
  if args[3] == '1' then
    put(c, ':closed', instance, RESUMING)
    set_flag(c, instance, CLOSED)
  else
    pull(c, instance, PAGE, 'g')
  end
  finish_call(c)
  return { 'ok', meta(c, 'generation') or '', c.now, '0-0' }
end

-- beat: KEYS[1] root; ARGV instance, epoch, MessagePack [cursor, cpu, memory, errors, running, progress]
-- reply: ok, generation, now, reason, recalled | stale (or its entries are being taken back) | unknown
-- Renews the lease. An instance that was closed because it did not read, and has read since, is open again.
local function beat(c, args)
  local instance = args[1]
  local refused = refusal(c, instance, args[2])
  if refused then return refused end
  local report = cmsgpack.unpack(args[3])
  if type(report) ~= 'table' or type(report[1]) ~= 'string' then error('a report begins with a cursor') end
  local reason = redis.call('HGET', key(c, ':closed'), instance) or ''
  if reason == LEAVING then return { 'stale' } end
  score(c, ':lease', instance, number(c.now + instance_of(c, instance).lease_ms))
  put(c, ':report', instance, struct.pack('<d', c.now) .. args[3])
  local recalled = redis.call('HGET', key(c, ':recalled'), instance) or '0-0'
  if reason == UNREAD and is_up_to(recalled, report[1]) then
    reason = ''
    reopen(c, instance)
    finish_call(c)
  end
  return { 'ok', meta(c, 'generation') or '', c.now, reason, recalled }
end

-- cordon: KEYS[1] root; ARGV instance, reason (empty: open it again, which pulls), epoch (empty: whatever it is)
-- reply: 1 | 0 (no such instance, another epoch, or its entries are being taken back)
-- A worker closes its own instance before it drains.
local function cordon(c, args)
  local instance = args[1]
  local record = instance_of(c, instance)
  if not record or (args[3] ~= '' and record.epoch ~= args[3]) or is_leaving(c, instance) then return 0 end
  if args[2] == '' then
    reopen(c, instance)
  else
    put(c, ':closed', instance, args[2])
    set_flag(c, instance, CLOSED)
  end
  finish_call(c)
  return 1
end

-- leave: KEYS[1] root; ARGV instance, epoch. reply: evicting, left | stale | unknown
local function leave(c, args)
  local refused = refusal(c, args[1], args[2])
  if refused then return refused end
  return { 'evicting', take_back(c, args[1], PAGE, 'the instance left') }
end

-- After a time in which nobody could reach the cell, spare the instances whose leases ran out in it or are about to: all
-- of a fleet would be evicted before it can beat again, and what it runs count as failed. Once only: a lease that was
-- spared ends with half a ms. The time in which no instance could register does not count as one without any either.
local function spare(c)
  local before = tonumber(redis.call('HGET', key(c, ':meta'), 'evict_ms'))
  put(c, ':meta', 'evict_ms', number(c.now))
  if not before or c.now - before <= AWAY_MS then return end
  for _, agent_type in ipairs(redis.call('HKEYS', key(c, ':unserved'))) do drop(c, ':unserved', agent_type) end
  local rows = redis.call(
    'ZRANGEBYSCORE', key(c, ':lease'), '(' .. number(before), number(c.now + SPARE_MS), 'WITHSCORES')
  for i = 1, #rows, 2 do
    if tonumber(rows[i + 1]) % 1 == 0 then score(c, ':lease', rows[i], number(c.now + SPARE_MS + 0.5)) end
  end
end

-- evict: KEYS[1] root; ARGV limit. Takes back a page of one instance whose lease has run out.
-- reply: instance, left | nothing
local function evict(c, args)
  spare(c)
  local expired = redis.call('ZRANGEBYSCORE', key(c, ':lease'), '-inf', number(c.now), 'LIMIT', 0, 1)[1]
  if not expired then return {} end
  if not instance_of(c, expired) then -- a lease of nobody
    score(c, ':lease', expired, nil)
    return { expired, 0 }
  end
  return { expired, take_back(c, expired, math.min(tonumber(args[1]), MAX_PAGE), 'the lease ran out') }
end

redis.register_function{ function_name = 'ty1_register', callback = atomic(register), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_beat', callback = atomic(beat), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_cordon', callback = atomic(cordon), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_leave', callback = atomic(leave), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_evict', callback = atomic(evict), flags = { 'allow-oom' } }
