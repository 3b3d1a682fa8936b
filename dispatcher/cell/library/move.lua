-- The moves of a task between its places. Each keeps :where in the call (written once by `finish_call`).

local MAX_SHAPES_SCANNED = 32 -- heads of one agent type that one pull looks at
local OPEN_TRIES = 8 -- members of an open set that one placement tries
local MAX_UNSTARTED = 3 -- how often a task may come back unstarted for free

local function park(c, shape, entry, id, attempt, order_key, deadline)
  redis.call('ZADD', key(c, ':park:' .. shape.text), number(order_key), entry)
  local added = redis.call('ZADD', key(c, ':heads:' .. shape.type), 'LT', number(order_key), shape.text)
  if added == 1 then redis.call('SADD', key(c, ':waiting'), shape.type) end
  if deadline > 0 then redis.call('ZADD', key(c, ':deadlines'), number(deadline), id) end
  c.where[id] = 'p|' .. number(order_key) .. '|' .. attempt .. '|' .. shape.text
  c.parked = c.parked + 1
  c.parked_bytes = c.parked_bytes + #entry
end

-- End the hold of an instance for a shape.
local function release(c, shape_text, instance)
  redis.call('HDEL', key(c, ':hold'), shape_text)
  redis.call('HDEL', key(c, ':held'), instance)
  c.held[instance] = false
  local f = free_of(c, instance)
  if f and f[2] == HELD then
    f[2] = OPEN
    c.dirty[instance] = true
  end
end

local function place(c, instance, f, shape, entry, id, attempt, via)
  take(c, instance, f, shape)
  local stream_id = redis.call('XADD', key(c, ':q:' .. instance), '*', 'e', entry)
  c.where[id] = 'q|' .. via .. '|' .. stream_id .. '|' .. attempt .. '|' .. instance .. '|' .. shape.text
  if f[2] == HELD then release(c, held_for(c, instance), instance) end -- it has served, or resync knows better
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
    local instance = redis.call('HGET', key(c, ':hold'), shape.text)
    if instance then -- nothing is left to hold it for
      release(c, shape.text, instance)
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

-- Whether a parked task of the shape goes before one with this key.
local function is_behind(c, shape, order_key)
  local head = redis.call('ZSCORE', key(c, ':heads:' .. shape.type), shape.text)
  return head and tonumber(head) <= order_key
end

-- Some instance of the shape's open set that fits; tries a bounded number.
local function any_open(c, shape)
  for _, instance in ipairs(redis.call('SRANDMEMBER', key(c, ':open:' .. shape.type), OPEN_TRIES)) do
    local f = free_of(c, instance)
    if f and fits(c, instance, f, shape) and has_labels(c, instance, shape) then return instance, f end
  end
  return nil
end

-- Place the entry on an instance of the open set, else park it. Used where no plan was made: due, evict, recall.
local function place_or_park(c, entry, via)
  local head = read_head(entry)
  local shape = shape_of(c, head.shape)
  if head.deadline > 0 and head.deadline < c.now then
    dead(c, entry, head.id, head.attempt, 'deadline', 'its deadline passed before it was placed', '')
    return
  end
  local instance, f
  if not is_behind(c, shape, head.key) then instance, f = any_open(c, shape) end
  if instance then
    place(c, instance, f, shape, entry, head.id, head.attempt, via)
  else
    park(c, shape, entry, head.id, head.attempt, head.key, head.deadline)
  end
end

-- Take the first task of the shape. Returns how many came onto the instance: 1, or 0 if there was none or it came late.
local function pop(c, instance, f, shape, via)
  local first = redis.call('ZPOPMIN', key(c, ':park:' .. shape.text))
  local entry = first[1]
  if not entry then
    refresh_head(c, shape)
    return 0
  end
  local head, placed = read_head(entry), 0
  unparked(c, entry, head.id)
  if head.deadline > 0 and head.deadline < c.now then
    dead(c, entry, head.id, head.attempt, 'deadline', 'its deadline passed while it was parked', '')
  else
    place(c, instance, f, shape, entry, head.id, head.attempt, via)
    placed = 1
  end
  refresh_head(c, shape)
  return placed
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

-- Fill the instance's free capacity with the best parked tasks of all its types; takes at most `limit` out of the
-- park. Returns how many came.
local function pull(c, instance, limit, via)
  local record = instance_of(c, instance)
  local f = free_of(c, instance)
  local pulled, taken = 0, 0
  while record and f and f[2] ~= CLOSED and f[FIRST] > 0 and taken < limit do
    local best, best_key
    for _, agent_type in ipairs(record.types) do
      local shape, order_key = best_of_type(c, instance, f, agent_type)
      if shape and (not best or order_key < best_key) then best, best_key = shape, order_key end
    end
    if not best then break end
    pulled, taken = pulled + pop(c, instance, f, best, via), taken + 1
  end
  return pulled
end

-- Fill the instance's free capacity with tasks of one shape. Returns how many came.
local function pull_shape(c, instance, shape, limit, via)
  local record, f = instance_of(c, instance), free_of(c, instance)
  if not record or not f or not has_labels(c, instance, shape) then return 0 end
  local serves, pulled, taken = false, 0, 0
  for _, agent_type in ipairs(record.types) do serves = serves or agent_type == shape.type end
  while serves and taken < limit and fits(c, instance, f, shape)
    and redis.call('EXISTS', key(c, ':park:' .. shape.text)) == 1 do
    pulled, taken = pulled + pop(c, instance, f, shape, via), taken + 1
  end
  return pulled
end

local function bump(c, field, by)
  if by ~= 0 then redis.call('HINCRBY', key(c, ':stats'), field, by) end
end

-- Forget the older half of the finished ids once the newer half is full or old.
local function rotate_done(c)
  local began = tonumber(meta(c, 'done_began'))
  if not began then redis.call('HSET', key(c, ':meta'), 'done_began', number(c.now)) end
  local is_old = began and c.now - began > setting(c, 'done_age_ms')
  if not is_old and redis.call('HLEN', key(c, ':done0')) < setting(c, 'done_limit') / 2 then return end
  redis.call('UNLINK', key(c, ':done1'))
  redis.call('RENAME', key(c, ':done0'), key(c, ':done1'))
  redis.call('HSET', key(c, ':meta'), 'done_began', number(c.now))
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
  if #done > 0 then rotate_done(c) end
  bump(c, 'parked', c.parked)
  bump(c, 'parked_bytes', c.parked_bytes)
  bump(c, 'later', c.later)
end

-- Full jitter: anywhere between nothing and the cap that doubles with each attempt (AWS, "Exponential backoff and jitter").
local function backoff_ms(c, head)
  local cap = math.min(setting(c, 'retry_cap_ms'), setting(c, 'retry_base_ms') * 2 ^ (head.attempt - 2))
  local jitter = tonumber(string.sub(redis.sha1hex(head.id .. head.attempt .. c.usec), 1, 6), 16) / 16777216
  return math.floor(cap * jitter)
end

-- A task leaves an instance without success. The attempt counts if it was started; `nil` (nobody can say) counts from
-- the fourth time on: an instance may die of a task before it can tell that it has started it.
-- delay_ms 0: again at once; below 0: after the cell's backoff.
local function again(c, entry, instance, reason, delay_ms, started)
  local head = read_head(entry)
  if started == nil then
    head.evictions = math.min(head.evictions + 1, 255)
    started = head.evictions > MAX_UNSTARTED
  end
  if started then
    add_cause(c, head, instance, reason)
    if head.attempt >= head.max_attempts then
      dead(c, rewrite(entry, head), head.id, head.attempt, 'attempts', reason, instance)
      return
    end
    head.attempt = head.attempt + 1
  end
  local next_entry = rewrite(entry, head)
  if not started or delay_ms == 0 then
    place_or_park(c, next_entry, 'e')
    return
  end
  if delay_ms < 0 then delay_ms = backoff_ms(c, head) end
  redis.call('ZADD', key(c, ':later'), number(c.now + delay_ms), next_entry)
  c.where[head.id] = 'l|' .. number(c.now + delay_ms) .. '|' .. head.attempt .. '|' .. head.shape
  c.later = c.later + 1
end
