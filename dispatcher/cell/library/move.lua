-- The moves of a task between its places. Each keeps :where in the call (written once by `finish_call`).

local MAX_SHAPES_SCANNED = 32 -- heads of one agent type that one pull looks at
local OPEN_TRIES = 8 -- members of an open set that one placement tries

local function place(c, instance, f, shape, entry, id, attempt, via)
  take(c, instance, f, shape)
  local stream_id = redis.call('XADD', key(c, ':q:' .. instance), '*', 'e', entry)
  c.where[id] = 'q|' .. via .. '|' .. stream_id .. '|' .. attempt .. '|' .. instance .. '|' .. shape.text
  if f[2] == HELD then -- the hold has served its shape
    f[2] = OPEN
    redis.call('HDEL', key(c, ':held'), instance)
    redis.call('HDEL', key(c, ':hold'), shape.text)
  end
  return stream_id
end

local function number(value)
  return string.format('%.17g', value)
end

local function park(c, shape, entry, id, attempt, order_key, deadline)
  redis.call('ZADD', key(c, ':park:' .. shape.text), number(order_key), entry)
  local added = redis.call('ZADD', key(c, ':heads:' .. shape.type), 'LT', number(order_key), shape.text)
  if added == 1 then redis.call('SADD', key(c, ':waiting'), shape.type) end
  if deadline > 0 then redis.call('ZADD', key(c, ':deadlines'), number(deadline), id) end
  c.where[id] = 'p|' .. number(order_key) .. '|' .. attempt .. '|' .. shape.text
  c.parked = c.parked + 1
  c.parked_bytes = c.parked_bytes + #entry
end

-- Keep the index of heads true after entries have left the park of a shape.
local function refresh_head(c, shape)
  local heads = key(c, ':heads:' .. shape.type)
  local first = redis.call('ZRANGE', key(c, ':park:' .. shape.text), 0, 0, 'WITHSCORES')
  if first[2] then
    redis.call('ZADD', heads, first[2], shape.text)
  else
    redis.call('ZREM', heads, shape.text)
    if redis.call('EXISTS', heads) == 0 then redis.call('SREM', key(c, ':waiting'), shape.type) end
    local held = redis.call('HGET', key(c, ':hold'), shape.text)
    if held then -- nothing is left to hold the instance for
      redis.call('HDEL', key(c, ':hold'), shape.text)
      redis.call('HDEL', key(c, ':held'), held)
      local f = free_of(c, held)
      if f and f[2] == HELD then f[2] = OPEN; c.dirty[held] = true end
    end
  end
end

local function unparked(c, entry, id)
  c.parked = c.parked - 1
  c.parked_bytes = c.parked_bytes - #entry
  if struct.unpack('<d', entry, 13) > 0 then redis.call('ZREM', key(c, ':deadlines'), id) end
end

local function dead(c, entry, id, attempt, reason, cause, instance)
  redis.call('XADD', key(c, ':out'), '*', 'd', reason, 'c', cause, 'i', instance, 'e', entry)
  c.forget[#c.forget + 1] = id
  c.where[id] = nil
  c.done[id] = 'd|' .. instance .. '|' .. attempt .. '|' .. string.format('%.0f', c.now)
end

-- Place the entry on an instance of the open set, else park it. Used where no plan was made: due, evict, recall.
local function place_or_park(c, entry, via)
  local head = read_head(entry)
  local shape = shape_of(c, head.shape)
  local parked_before = redis.call('ZSCORE', key(c, ':heads:' .. shape.type), shape.text)
  if not parked_before or tonumber(parked_before) > head.key then
    for _, instance in ipairs(redis.call('SRANDMEMBER', key(c, ':open:' .. shape.type), OPEN_TRIES)) do
      local f = free_of(c, instance)
      if f and fits(c, instance, f, shape) and has_labels(c, instance, shape) then
        place(c, instance, f, shape, entry, head.id, head.attempt, via)
        return true
      end
    end
  end
  park(c, shape, entry, head.id, head.attempt, head.key, head.deadline)
  return false
end

local function pop(c, instance, f, shape, via)
  local first = redis.call('ZPOPMIN', key(c, ':park:' .. shape.text))
  local entry = first[1]
  if not entry then
    refresh_head(c, shape)
    return false
  end
  local head = read_head(entry)
  unparked(c, entry, head.id)
  if head.deadline > 0 and head.deadline < c.now then
    dead(c, entry, head.id, head.attempt, 'deadline', 'its deadline passed while it was parked', '')
  else
    place(c, instance, f, shape, entry, head.id, head.attempt, via)
  end
  refresh_head(c, shape)
  return true
end

-- The head of this type with the earliest key that fits the instance, looking at a bounded number of shapes.
local function best_of_type(c, instance, f, agent_type)
  local first, size = 0, 1
  while first < MAX_SHAPES_SCANNED do
    local heads = redis.call('ZRANGE', key(c, ':heads:' .. agent_type), first, first + size - 1, 'WITHSCORES')
    for i = 1, #heads, 2 do
      local shape = shape_of(c, heads[i])
      if fits(c, instance, f, shape) and has_labels(c, instance, shape) then return shape, tonumber(heads[i + 1]) end
    end
    if #heads < 2 * size then return nil end
    first, size = first + size, MAX_SHAPES_SCANNED - first - size
  end
  return nil
end

-- Fill the instance's free capacity with the best parked tasks of all its types. Returns how many came.
local function pull(c, instance, limit, via)
  local record = instance_of(c, instance)
  local f = free_of(c, instance)
  local pulled = 0
  while record and f and f[2] ~= CLOSED and f[FIRST] > 0 and pulled < limit do
    local best, best_key
    for _, agent_type in ipairs(record.types) do
      local shape, order_key = best_of_type(c, instance, f, agent_type)
      if shape and (not best or order_key < best_key) then best, best_key = shape, order_key end
    end
    if not best then break end
    if pop(c, instance, f, best, via) then pulled = pulled + 1 end
  end
  return pulled
end

local function bump(c, field, by)
  if by ~= 0 then redis.call('HINCRBY', key(c, ':stats'), field, by) end
end

-- The last writes of every function that moves tasks: vectors, places, memory of finished ids, counters.
local function finish_call(c)
  write_free(c)
  local places, done = {}, {}
  for id, text in pairs(c.where) do
    places[#places + 1] = id
    places[#places + 1] = text
  end
  for id, text in pairs(c.done) do
    done[#done + 1] = id
    done[#done + 1] = text
  end
  in_chunks('HSET', key(c, ':where'), places, 4000)
  in_chunks('HDEL', key(c, ':where'), c.forget, 4000)
  in_chunks('HSET', key(c, ':done0'), done, 4000)
  bump(c, 'parked', c.parked)
  bump(c, 'parked_bytes', c.parked_bytes)
  bump(c, 'later', c.later)
end

-- The end of an attempt without success: again after a backoff with full jitter, or dead when attempts ran out.
-- delay_ms below 0: the cell's own backoff. started: whether the attempt counts.
local function again(c, entry, instance, reason, delay_ms, started)
  local head = read_head(entry)
  add_cause(c, head, instance, reason)
  if started and head.attempt >= head.max_attempts then
    dead(c, rewrite(entry, head), head.id, head.attempt, 'attempts', reason, instance)
    return false
  end
  if started then head.attempt = head.attempt + 1 else head.evictions = math.min(head.evictions + 1, 255) end
  local next_entry = rewrite(entry, head)
  if not started then
    place_or_park(c, next_entry, 'e')
    return true
  end
  if delay_ms < 0 then
    local base = tonumber(setting(c, 'retry_base_ms') or 1000)
    local cap = tonumber(setting(c, 'retry_cap_ms') or 60000)
    local jitter = tonumber(string.sub(redis.sha1hex(head.id .. head.attempt .. c.usec), 1, 6), 16) / 16777216
    delay_ms = math.floor(math.min(cap, base * 2 ^ (head.attempt - 2)) * jitter)
  end
  redis.call('ZADD', key(c, ':later'), number(c.now + delay_ms), next_entry)
  c.where[head.id] = 'l|' .. number(c.now + delay_ms) .. '|' .. head.attempt .. '|' .. head.shape
  c.later = c.later + 1
  return true
end
